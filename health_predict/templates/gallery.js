// The page is whole without this: it filters and sorts the rows that are there, and shows times in the reader's own time zone.
(() => {
  for (const o of document.querySelectorAll("time")) o.textContent = new Date(o.dateTime).toLocaleString([], {dateStyle: "medium", timeStyle: "short"});
  const filter = document.querySelector(".filter"), table = document.querySelector("#batches");
  if (!filter) return;
  const body = table.tBodies[0], rows = [...body.rows], said = document.querySelector("#count");
  const texts = new Map(rows.map(r => [r, [...r.cells].map(c => c.textContent).join(" ").toLowerCase()]));
  const number = r => Number(r.cells[0].dataset.v);
  const hits = (r, word) => {
    const span = word.match(/^(\d+)(?:-(\d+))?$/);    // a batch, or some
    if (span) return number(r) >= +span[1] && number(r) <= +(span[2] ?? span[1]);
    return word.startsWith("version ") ? new RegExp(`\\b${word}\\b`).test(texts.get(r)) : texts.get(r).includes(word);
  };
  const show = () => {
    const words = filter.querySelector("input").value.toLowerCase().replace(/\bbatch(es)?\b/g, " ").match(/version \d+|\S+/g) ?? [];
    const chosen = [...filter.querySelectorAll("select")].filter(o => o.value);
    let n = 0;
    for (const r of rows) n += !(r.hidden = !(chosen.every(o => r.dataset[o.name] === o.value) && words.every(w => hits(r, w))));
    said.textContent = n === rows.length ? `${n} ${n === 1 ? "batch" : "batches"}` : `${n} of ${rows.length} batches`;
  };
  const key = (r, i) => { const c = r.cells[i]; return c.dataset.v ?? (c.textContent === "–" ? "" : c.textContent); };
  const sort = (i, way) => {
    const sign = way === "ascending" ? 1 : -1;
    rows.sort((a, b) => {
      const [x, y] = [key(a, i), key(b, i)];
      if (!x || !y) return !x - !y;    // what isn't known comes last
      return sign * (isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y) || number(b) - number(a);
    });
    body.append(...rows);
  };
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, i) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const way = head.ariaSort === "descending" ? "ascending" : "descending";
      for (const o of heads) o.removeAttribute("aria-sort");
      head.ariaSort = way;
      sort(i, way);
    });
  });
  heads[0].ariaSort = "descending";
  for (const o of ["input", "change"]) filter.addEventListener(o, show);
  filter.hidden = false;
  show();
})();
