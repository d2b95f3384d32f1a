(() => {
  "use strict";
  const examples = [...document.querySelectorAll(".example")];
  const box = document.getElementById("search");
  const buttons = [...document.querySelectorAll(".tools button")];
  const count = document.getElementById("count");
  if (!box) return;
  const texts = examples.map((example) => example.textContent.toLowerCase());
  let kind = "all";

  function show() {
    const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    examples.forEach((example, index) => {
      const fits = (kind === "all" || example.dataset.kind === kind) && words.every((word) => texts[index].includes(word));
      example.hidden = !fits;
      shown += fits ? 1 : 0;
    });
    count.textContent = `${shown} of ${examples.length} shown`;
  }

  function fromAddress() {
    const found = /^#q=(.*)$/.exec(location.hash);
    if (!found) return;
    try { box.value = decodeURIComponent(found[1]); } catch { box.value = found[1]; }
  }

  box.addEventListener("input", () => {
    history.replaceState(null, "", box.value ? `#q=${encodeURIComponent(box.value)}` : "#examples");
    show();
  });
  buttons.forEach((button) => button.addEventListener("click", () => {
    kind = button.dataset.kind;
    buttons.forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
    show();
  }));
  addEventListener("hashchange", () => { fromAddress(); show(); });
  fromAddress();
  show();
})();
