"use strict";
// Fetches the live parts of a page again when rows come or a filter changes, and moves through lists by keys.
let isBusy = false, isStale = false, place = -1;

async function refresh() {
  if (isBusy) { isStale = true; return; }
  isBusy = true;
  try {
    const answer = await fetch(location.href);
    const next = new DOMParser().parseFromString(await answer.text(), "text/html");
    if (answer.ok) document.title = next.title;
    for (const part of document.querySelectorAll("[data-live]")) {
      // A filter that holds for nothing has a page of its error, which takes the place of the list.
      const fresh = answer.ok ? next.getElementById(part.id) : part.id === "list" && next.getElementById("main");
      if (fresh) keepOpen(part, fresh);
      if (fresh && fresh.innerHTML !== part.innerHTML && !part.contains(document.activeElement)) {
        part.replaceChildren(...fresh.childNodes);
      }
    }
    if (place >= 0) select(place);
  } finally {
    isBusy = false;
    if (isStale) { isStale = false; setTimeout(refresh, 200); }
  }
}

function keepOpen(part, fresh) {
  const held = part.querySelectorAll("details");
  fresh.querySelectorAll("details").forEach((each, i) => { each.open = held[i] ? held[i].open : each.open; });
}

function select(wanted) {
  const rows = [...document.querySelectorAll("[data-row]")];
  if (!rows.length) return;
  place = Math.max(0, Math.min(wanted, rows.length - 1));
  rows.forEach((row, i) => row.classList.toggle("is-on", i === place));
  rows[place].scrollIntoView({ block: "nearest" });
}

function act(key) {
  const named = document.querySelector(`[data-key="${CSS.escape(key)}"]`);
  if (named) { named.click(); return true; }
  if (key === "j" || key === "k") { select(place + (key === "j" ? 1 : -1)); return true; }
  if (key === "Enter" && place >= 0) {
    const link = document.querySelectorAll("[data-row]")[place]?.querySelector("a");
    if (link) { link.click(); return true; }
  }
  if (key === "/") {
    const search = document.querySelector("input[type=search]");
    if (search) { search.focus(); search.select(); return true; }
  }
  if (key === "u") {
    const study = document.querySelector("nav.tabs a");
    (study && !study.hasAttribute("aria-current") ? study : document.querySelector("nav a")).click();
    return true;
  }
  return false;
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest("input, select, textarea, a, button, summary") && event.key === "Enter") return;
  if (event.target.closest("input, select, textarea")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (act(event.key)) event.preventDefault();
});

// Filters apply by themselves, and the address is that of what is shown.
let waiting = 0;
function apply(form) {
  const chosen = [...new FormData(form)].filter(([, value]) => value);
  history.replaceState(null, "", `${form.action}?${new URLSearchParams(chosen)}`);
  place = -1;
  refresh();
}
document.addEventListener("input", ({ target }) => {
  if (!target.matches("form.filters[data-applies] *")) return;
  clearTimeout(waiting);
  waiting = setTimeout(apply, target.matches("select") ? 0 : 250, target.form);
});
document.addEventListener("submit", (event) => {
  if (!event.target.matches("form[data-applies]")) return;
  event.preventDefault();
  apply(event.target);
});

if (document.body.dataset.events) {
  const events = new EventSource(document.body.dataset.events);
  events.addEventListener("rows", refresh);
  window.addEventListener("pagehide", () => events.close());
}

// A box whose content is wider than the screen says so.
function markCut() {
  for (const box of document.querySelectorAll(".scroll")) {
    const inner = box.firstElementChild;
    box.classList.toggle("is-cut", inner !== null && inner.scrollWidth > box.clientWidth + 2);
  }
}
markCut();
addEventListener("resize", markCut);

// A figure that scrolls begins at the model that it is about.
const chosen = document.querySelector(".figure .chosen");
if (chosen) {
  const box = chosen.closest(".figure"), of = box.getBoundingClientRect(), at = chosen.getBoundingClientRect();
  box.scrollTo(at.left - of.left - (of.width - at.width) / 2, at.top - of.top - (of.height - at.height) / 2);
}
