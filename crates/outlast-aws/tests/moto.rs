//! The client against moto, an emulator of AWS; boto3, AWS's own client, says what came of it.
//!
//! With `OUTLAST_REAL=1` the tests run; without it they say that they did not. The `python3` on the path has moto.

#![cfg(test)]

use std::time::Duration;

use outlast_aws::rds::{Limits, PromoteError};
use outlast_aws::route53::{Change, CheckConfig, Choice, How, RecordSet};

use emulator::Moto;

mod emulator;

#[tokio::test]
async fn the_failover_of_the_chapter_is_made_as_boto3_makes_it() {
    let Some(moto) = Moto::start() else { return };
    let zone = moto.boto3("print(route53.create_hosted_zone(Name='example.com', CallerReference='1')['HostedZone']['Id'])");
    let zone = outlast_aws::route53::zone_id(&zone).expect("an id").to_owned();
    let client = moto.client("us-east-1");
    assert_eq!(client.hosted_zone_name(&zone).await.expect("a zone"), "example.com");

    let config = CheckConfig {
        how: How::Http { tls: true, path: "/health".to_owned(), search: None },
        ip: Some([54, 123, 45, 67].into()),
        port: 443,
        host: Some("primary.example.com".to_owned()),
        interval: 30,
        threshold: 3,
        inverted: false,
        disabled: false,
    };
    let made = client.create_health_check("outlast-1", &config).await.expect("a check");
    assert_eq!((&made.config, made.reference.as_str()), (&config, "outlast-1"));
    client.name_health_check(&made.id, "api A 54.123.45.67").await.expect("a tag");
    assert_eq!(client.health_checks().await.expect("checks"), std::slice::from_ref(&made));

    let set = |identifier: &str, choice, value: &str, check: Option<&str>| RecordSet {
        set_identifier: Some(identifier.to_owned()),
        ttl: Some(60),
        values: vec![value.to_owned()],
        choice: Some(choice),
        health_check: check.map(str::to_owned),
        ..RecordSet::new("api.example.com", "A")
    };
    let primary = set("Primary", Choice::Primary, "54.123.45.67", Some(&made.id));
    let secondary = set("Secondary", Choice::Secondary, "52.234.56.78", None);
    let batch = [Change::Create(primary.clone()), Change::Create(secondary.clone())];
    client.change_record_sets(&zone, "a comment", &batch).await.expect("a change");

    let sets = client.record_sets(&zone).await.expect("sets");
    let ours: Vec<_> = sets.iter().filter(|found| found.set.name == "api.example.com").collect();
    assert_eq!((&ours[0].set, &ours[1].set), (&primary, &secondary));
    let seen = moto.boto3(&format!(
        "for s in route53.list_resource_record_sets(HostedZoneId='{zone}')['ResourceRecordSets']:\n  \
         if s['Type'] == 'A': print(s['Name'], s['SetIdentifier'], s['Failover'], s['TTL'], s['ResourceRecords'][0]['Value'], 'HealthCheckId' in s)\n\
         c = route53.list_health_checks()['HealthChecks'][0]['HealthCheckConfig']\n\
         print(c['Type'], c['ResourcePath'], c['FullyQualifiedDomainName'], c['Port'], c['RequestInterval'], c['FailureThreshold'])\n\
         print(route53.list_tags_for_resource(ResourceType='healthcheck', ResourceId='{}')['ResourceTagSet']['Tags'])",
        made.id
    ));
    assert_eq!(
        seen,
        "api.example.com. Primary PRIMARY 60 54.123.45.67 True\n\
         api.example.com. Secondary SECONDARY 60 52.234.56.78 False\n\
         HTTPS /health primary.example.com 443 30 3\n\
         [{'Key': 'Name', 'Value': 'api A 54.123.45.67'}]"
    );

    client.invert_health_check(&made, true).await.expect("it is turned");
    let turned = client.health_checks().await.expect("checks");
    assert!(turned[0].config.inverted, "{turned:?}");
    let gone: Vec<Change> = ours.into_iter().map(|found| Change::Delete(found.clone())).collect();
    client.change_record_sets(&zone, "", &gone).await.expect("a change");
    client.delete_health_check(&made.id).await.expect("it is deleted");
    client.delete_health_check(&made.id).await.expect("once more");
    assert!(client.health_checks().await.expect("checks").is_empty());
    assert!(
        client.record_sets(&zone).await.expect("sets").iter().all(|found| found.set.kind != "A")
    );

    let missing = client.record_sets("Z0MISSING").await.expect_err("no such zone");
    assert_eq!(missing.code(), Some("NoSuchHostedZone"), "{missing}");
}

#[tokio::test]
async fn a_replica_in_another_region_is_promoted() {
    let Some(moto) = Moto::start() else { return };
    let limits = Limits {
        lag: Some(Duration::from_secs(5)),
        wait: Duration::from_secs(20),
        look: Duration::from_millis(50),
    };
    moto.boto3(
        "a = client('rds', 'us-east-1'); b = client('rds', 'us-west-2')\n\
         p = a.create_db_instance(DBInstanceIdentifier='myapp-primary', Engine='postgres', DBInstanceClass='db.m5.large', \
         AllocatedStorage=20, MasterUsername='x', MasterUserPassword='secret-secret')\n\
         b.create_db_instance_read_replica(DBInstanceIdentifier='myapp-standby', SourceDBInstanceIdentifier=p['DBInstance']['DBInstanceArn'])",
    );
    let client = moto.client("us-west-2");
    let standby = client.instance("myapp-standby").await.expect("the replica");
    assert!(standby.replica_of.is_some(), "{standby:?}");
    let missing = client.instance("missing").await.expect_err("no such instance");
    assert_eq!(missing.code(), Some("DBInstanceNotFound"), "{missing}");

    let result = client.promote_replica("myapp-standby", limits, &mut drop).await;
    assert_eq!(result, Err(PromoteError::UnknownLag));
    let tell = |lag: f64| {
        moto.boto3(&format!(
            "client('cloudwatch', 'us-west-2').put_metric_data(Namespace='AWS/RDS', MetricData=[dict(MetricName='ReplicaLag', Value={lag}, \
             Timestamp=datetime.datetime.now(datetime.timezone.utc), Dimensions=[dict(Name='DBInstanceIdentifier', Value='myapp-standby')])])"
        ))
    };
    tell(90.0);
    let result = client.promote_replica("myapp-standby", limits, &mut drop).await;
    assert!(matches!(result, Err(PromoteError::TooFarBehind { .. })), "{result:?}");
    let result = client
        .promote_replica(
            "myapp-standby",
            Limits { lag: Some(Duration::from_secs(100)), ..limits },
            &mut drop,
        )
        .await;
    let promoted = result.expect("promoted");
    assert_eq!((promoted.replica_of, promoted.status.as_str()), (None, "available"));
    assert!(promoted.endpoint.is_some());
    let seen = moto.boto3(
        "print('ReadReplicaSourceDBInstanceIdentifier' in client('rds', 'us-west-2').describe_db_instances(DBInstanceIdentifier='myapp-standby')['DBInstances'][0])",
    );
    assert_eq!(seen, "False");
    let result = client.promote_replica("myapp-standby", limits, &mut drop).await;
    assert_eq!(result, Err(PromoteError::NotAReplica("myapp-standby".to_owned())));
}
