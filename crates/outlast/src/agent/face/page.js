
"use strict";
// Refreshes the page in place; leaves it alone while nobody looks at it or somebody marks text in it.
(async () => {
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, 2000));
    if (document.hidden || String(getSelection())) continue;
    try {
      const answer = await fetch("/", { cache: "no-store", signal: AbortSignal.timeout(5000) });
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const scrolled = [...document.querySelectorAll(".scroll")].map((box) => box.scrollLeft);
      document.querySelector("main").replaceWith(page.querySelector("main"));
      document.querySelectorAll(".scroll").forEach((box, place) => (box.scrollLeft = scrolled[place] ?? 0));
      document.title = page.title;
      document.body.classList.remove("old");
    } catch {
      document.body.classList.add("old");
    }
  }
})();
