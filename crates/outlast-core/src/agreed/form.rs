//! How the parts of what is agreed are written: their fields one after the other, a case by its number.
//!
//! What travels or is kept alone (an entry, a reply, a snapshot) begins with a version byte, which covers everything
//! inside it. Numbers of cases are never given twice; whoever changes the fields of a case raises the version.

/// Writes and reads the named fields of a struct, in this order.
macro_rules! coded_struct {
    ($name:ident $(version $version:literal)? { $($field:ident),* $(,)? }) => {
        impl $crate::codec::Code for $name {
            fn encode(&self, to: &mut alloc::vec::Vec<u8>) {
                let $name { $($field),* } = self;
                $(to.push($version);)?
                $($crate::codec::Code::encode($field, to);)*
            }

            fn decode(
                from: &mut $crate::codec::Reader<'_>,
            ) -> Result<$name, $crate::codec::Malformed> {
                $(if from.byte()? != $version {
                    return Err($crate::codec::Malformed("a version that is not known here"));
                })?
                Ok($name { $($field: $crate::codec::Code::decode(from)?),* })
            }
        }
    };
}

/// Writes the number of a case and then its fields, in this order.
macro_rules! coded_enum {
    ($name:ident $(version $version:literal)?, $unknown:literal,
     { $($number:literal = $case:ident $({ $($field:ident),* $(,)? })?),* $(,)? }) => {
        impl $crate::codec::Code for $name {
            fn encode(&self, to: &mut alloc::vec::Vec<u8>) {
                $(to.push($version);)?
                match self {
                    $($name::$case { $($($field),*)? } => {
                        to.push($number);
                        $($($crate::codec::Code::encode($field, to);)*)?
                    })*
                }
            }

            fn decode(
                from: &mut $crate::codec::Reader<'_>,
            ) -> Result<$name, $crate::codec::Malformed> {
                $(if from.byte()? != $version {
                    return Err($crate::codec::Malformed("a version that is not known here"));
                })?
                match from.byte()? {
                    $($number => Ok($name::$case {
                        $($($field: $crate::codec::Code::decode(from)?),*)?
                    }),)*
                    _ => Err($crate::codec::Malformed($unknown)),
                }
            }
        }
    };
}

/// Writes a list as its count and its things; bytes have a form of their own, so that there is none for all lists.
macro_rules! coded_list {
    ($($of:ident),*) => {
        $(impl $crate::codec::Code for alloc::vec::Vec<$of> {
            fn encode(&self, to: &mut alloc::vec::Vec<u8>) {
                $crate::codec::encode_list(self.iter(), to);
            }

            fn decode(
                from: &mut $crate::codec::Reader<'_>,
            ) -> Result<alloc::vec::Vec<$of>, $crate::codec::Malformed> {
                $crate::codec::decode_list(from)
            }
        })*
    };
}

pub(crate) use {coded_enum, coded_list, coded_struct};
