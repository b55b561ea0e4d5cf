// What the report does: cases are sorted, filtered, opened and heard, by mouse, touch or keys. Works on what is there.
(() => {
  const list = document.getElementById("list");
  const worstFirst = [...list.children];
  const control = (id) => document.getElementById(id);
  const search = control("search");
  const value = (id) => control(id)?.value ?? "";

  function visible() {
    return [...list.children].filter((one) => !one.hidden);
  }

  // The value below which a quarter of the cases are.
  function quarter(key) {
    const values = worstFirst.map((one) => Number(one.dataset[key])).sort((a, b) => a - b);
    return values[Math.max(0, Math.ceil(values.length / 4) - 1)];
  }
  const lowest = { sim: quarter("sim"), dnsmos: quarter("dnsmos") };

  function hasFigure(one, key) {
    return !key || (key in lowest ? one.dataset[key] <= lowest[key] : one.dataset[key] > 0);
  }

  function fits(one, words) {
    const { protocol, category, wrong, search } = one.dataset;
    return (!value("protocol") || protocol === value("protocol"))
      && (!value("category") || category === value("category"))
      && hasFigure(one, value("figure"))
      && (!control("wrong").checked || wrong === "1")
      && words.every((word) => search.includes(word));
  }

  function update() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const one of worstFirst) one.hidden = !fits(one, words);
    const [key, sign] = value("order").split(":");
    const sorted = [...worstFirst];
    if (key) sorted.sort((a, b) => sign * (a.dataset[key] - b.dataset[key]));
    list.append(...sorted);
    const found = visible().length;
    control("count").textContent = `${found} of ${worstFirst.length} cases`;
    control("none").hidden = found > 0;
  }

  function reset() {
    control("none").closest("main").querySelector(".tools").reset();
    update();
  }

  // The case that the keys mean.
  function current() {
    return document.activeElement?.closest(".case:not([hidden])") ?? list.querySelector(".case[open]:not([hidden])");
  }

  function go(step) {
    const cases = visible();
    if (!cases.length) return;
    const from = current();
    const place = from ? cases.indexOf(from) + step : step > 0 ? 0 : cases.length - 1;
    const to = cases[Math.min(Math.max(place, 0), cases.length - 1)];
    if (from && from !== to) from.open = false;
    show(to);
  }

  function show(one) {
    one.open = true;
    one.querySelector("summary").focus({ preventScroll: true });
    one.scrollIntoView({ block: "nearest" });
    if (one.getBoundingClientRect().height > innerHeight) one.querySelector("summary").scrollIntoView();
  }

  function play(number) {
    const one = current() ?? visible()[0];
    if (!one) return;
    if (!one.open) show(one);
    sounds.ready(one);
    const all = [...one.querySelectorAll("audio")];
    const audio = number ? all[number - 1] : all.find((each) => !each.paused) ?? all[one.dataset.heard ?? 0];
    if (!audio) return;
    if (audio.paused) sounds.play(audio); else audio.pause();
  }

  const keys = {
    j: () => go(1),
    k: () => go(-1),
    " ": () => play(0),
    "/": () => { search.focus(); search.select(); },
    "?": () => control("help").showModal(),
    w: () => { control("wrong").click(); },
  };
  for (const number of [1, 2, 3, 4, 5]) keys[number] = () => play(number);

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || control("help").open) return;
    const inside = event.target;
    if (inside === search && event.key === "Escape") { search.blur(); return; }
    if (inside.matches("input:not([type=checkbox]), select, textarea")) return;
    if (event.key === " " && inside.matches("button, input, a, audio")) return;
    const act = keys[event.key];
    if (act) { event.preventDefault(); act(); }
  });

  // Sounds and pictures of a case are made when it is first opened.
  list.addEventListener("toggle", (event) => {
    if (event.target.open) sounds.ready(event.target);
    else for (const audio of event.target.querySelectorAll("audio")) audio.pause();
  }, true);
  list.addEventListener("play", (event) => {
    const one = event.target.closest(".case");
    one.dataset.heard = [...one.querySelectorAll("audio")].indexOf(event.target);
    event.target.closest("figure").classList.add("playing");
    follow(event.target);
  }, true);
  for (const name of ["pause", "ended"]) {
    list.addEventListener(name, (event) => event.target.closest("figure").classList.remove("playing"), true);
  }

  // The line in the spectrogram is where the sound is; a click there is heard from there.
  function follow(audio) {
    const line = audio.closest("figure").querySelector(".picture i");
    line.classList.add("on");
    line.style.left = `${100 * audio.currentTime / (audio.duration || 1)}%`;
    if (!audio.paused) requestAnimationFrame(() => follow(audio));
  }
  list.addEventListener("click", (event) => {
    const picture = event.target.closest(".picture");
    if (!picture) return;
    const audio = picture.parentElement.querySelector("audio");
    const box = picture.getBoundingClientRect();
    audio.currentTime = (event.clientX - box.left) / box.width * (audio.duration || 0);
    sounds.play(audio);
  });

  for (const name of ["input", "change"]) document.querySelector(".tools").addEventListener(name, update);
  document.querySelector(".tools").addEventListener("submit", (event) => event.preventDefault());
  control("reset").addEventListener("click", reset);
  update();
  const named = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (named && named.matches(".case")) show(named); else if (list.firstElementChild) list.firstElementChild.open = true;
})();
