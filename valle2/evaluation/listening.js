// A listening test: one trial at a time, in an order of each rater's own, answers kept in the browser and saved as JSON.
(() => {
  const about = JSON.parse(document.getElementById("about").textContent);
  const control = (id) => document.getElementById(id);
  const SIMILARITY = { 1: "not at all alike", 2: "slightly alike", 3: "moderately alike", 4: "very alike", 5: "one and the same voice" };
  const PREFERENCE = { "-3": "much worse", "-2": "worse", "-1": "slightly worse", 0: "about the same", 1: "slightly better", 2: "better", 3: "much better" };
  const KINDS = {
    smos: {
      question: "How alike are the two voices?",
      hint: "Judge the voice alone: not what is said, nor how clean the sound is.",
      legend: "The second voice, beside the first, is",
      titles: ["First", "Second"],
      scores: [1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5].map((score) => [score, SIMILARITY[score] ?? ""]),
    },
    cmos: {
      question: "Which one sounds more natural?",
      hint: "More like a person who speaks, less like a machine.",
      legend: "The second, compared with the first, sounds",
      titles: ["First", "Second"],
      scores: [-3, -2, -1, 0, 1, 2, 3].map((score) => [score, PREFERENCE[score]]),
    },
  };
  let session;

  // The same name always gives the same draws (xmur3 seeds mulberry32).
  function draws(text) {
    let seed = 1779033703 ^ text.length;
    for (const letter of text) {
      seed = Math.imul(seed ^ letter.codePointAt(0), 3432918353);
      seed = (seed << 13) | (seed >>> 19);
    }
    return () => {
      seed = (seed + 0x6d2b79f5) | 0;
      let value = Math.imul(seed ^ (seed >>> 15), 1 | seed);
      value = (value + Math.imul(value ^ (value >>> 7), 61 | value)) ^ value;
      return ((value ^ (value >>> 14)) >>> 0) / 4294967296;
    };
  }

  function shuffled(items, draw) {
    const mixed = [...items];
    for (let last = mixed.length - 1; last > 0; last--) {
      const other = Math.floor(draw() * (last + 1));
      [mixed[last], mixed[other]] = [mixed[other], mixed[last]];
    }
    return mixed;
  }

  // Similarity first, then comparisons; each part, and the two of a pair, in the rater's own order.
  function order(rater) {
    const draw = draws(`${about.test} ${rater.toLowerCase()}`);
    return ["smos", "cmos"]
      .flatMap((kind) => shuffled(about.trials.filter((trial) => trial.kind === kind), draw))
      .map((trial) => ({ ...trial, stimuli: shuffled(trial.stimuli, draw) }));
  }

  // A browser may refuse to keep anything, as for a page inside another one.
  const store = {
    name: (rater) => `valle2-listening ${about.test} ${rater.toLowerCase()}`,
    read(rater) { try { return JSON.parse(localStorage.getItem(this.name(rater))); } catch { return null; } },
    write(rater, value) {
      try { localStorage.setItem(this.name(rater), JSON.stringify(value)); return true; } catch { return false; }
    },
  };
  const now = () => new Date().toISOString();

  function begin(rater) {
    const kept = store.read(rater);
    session = { rater, trials: order(rater), answers: kept?.answers ?? {}, started: kept?.started ?? now(), at: 0, heard: new Set() };
    const open = session.trials.findIndex((trial) => !(trial.trial in session.answers));
    session.at = open < 0 ? session.trials.length : open;
    control("start").hidden = control("title").hidden = true;
    control("keys").hidden = false;
    show();
  }

  function show() {
    const done = Object.keys(session.answers).length;
    const over = session.at >= session.trials.length;
    control("trial").hidden = over;
    control("end").hidden = !over;
    if (over) {
      control("tally").textContent = `${session.rater} has answered ${done} of ${session.trials.length}.`;
      control("thanks").focus();
      return;
    }
    const trial = session.trials[session.at];
    const kind = KINDS[trial.kind];
    control("place").textContent = `${session.at + 1} of ${session.trials.length}`;
    Object.assign(control("progress"), { value: done, max: session.trials.length });
    control("question").textContent = kind.question;
    control("hint").textContent = kind.hint;
    control("legend").textContent = kind.legend;
    const keys = [...(trial.prompt ? [trial.prompt] : []), ...trial.stimuli.map((one) => one.sound)];
    control("sounds").replaceChildren(...keys.map((key, place) => sound(key, `${kind.titles[place]} (${"ab"[place]})`)));
    sounds.ready(control("sounds"));
    control("choices").replaceChildren(...kind.scores.map(([score, words]) => choice(score, words)));
    const answer = session.answers[trial.trial];
    session.heard = new Set(answer ? keys.keys() : []);
    if (answer) control("choices").querySelector(`[value="${answer.score}"]`).checked = true;
    session.shown = Date.now();
    control("back").disabled = session.at === 0;
    allow();
    control("question").focus();
    scrollTo(0, 0);
  }

  function element(name, properties, ...children) {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...children);
    return made;
  }

  function sound(key, title) {
    const audio = element("audio", { controls: true, preload: "auto" });
    audio.dataset.sound = key;
    audio.setAttribute("aria-label", title);
    audio.setAttribute("controlslist", "nodownload noplaybackrate");
    return element("figure", {}, element("figcaption", { textContent: title }), audio);
  }

  function choice(score, words) {
    const input = element("input", { type: "radio", name: "score", value: score, required: true });
    return element("label", {}, input, element("b", { textContent: `${score}`.replace("-", "−") }), words);
  }

  // Nothing is judged before all of it was heard once.
  function allow() {
    const figures = [...control("sounds").children];
    figures.forEach((one, place) => one.classList.toggle("done", session.heard.has(place)));
    const all = figures.every((_, place) => session.heard.has(place));
    control("scale").disabled = !all;
    control("next").disabled = !all;
    control("first-listen").textContent = all ? "" : "Please hear both to the end first.";
  }

  function results() {
    return {
      format: 1, test: about.test, rater: session.rater, started: session.started, saved: now(),
      num_trials: session.trials.length,
      answers: session.trials.filter((trial) => trial.trial in session.answers)
        .map((trial) => ({ trial: trial.trial, ...session.answers[trial.trial] })),
    };
  }

  function save() {
    const name = `listening-${about.test}-${session.rater.replace(/[^\p{L}\p{N}]+/gu, "_")}.json`;
    const address = URL.createObjectURL(new Blob([JSON.stringify(results(), null, 1)], { type: "application/json" }));
    element("a", { href: address, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(address), 10_000);
  }

  control("start").addEventListener("submit", (event) => {
    event.preventDefault();
    const rater = control("rater").value.trim().replace(/\s+/g, " ");
    if (rater) begin(rater); else control("rater").focus();
  });
  control("trial").addEventListener("submit", (event) => {
    event.preventDefault();
    const trial = session.trials[session.at];
    const chosen = control("choices").querySelector(":checked");
    if (!chosen || control("next").disabled) return;
    session.answers[trial.trial] = {
      score: Number(chosen.value), order: trial.stimuli.map((one) => one.id), at: now(),
      seconds: Math.round((Date.now() - session.shown) / 100) / 10,
    };
    store.write(session.rater, { answers: session.answers, started: session.started });
    session.at += 1;
    show();
  });
  for (const id of ["back", "again"]) control(id).addEventListener("click", () => { session.at -= 1; show(); });
  for (const id of ["save", "partial"]) control(id).addEventListener("click", save);
  control("sounds").addEventListener("ended", (event) => {
    session.heard.add([...control("sounds").children].indexOf(event.target.parentElement));
    allow();
  }, true);
  document.addEventListener("keydown", (event) => {
    if (!session || control("trial").hidden || event.ctrlKey || event.metaKey || event.altKey) return;
    const place = "ab".indexOf(event.key.toLowerCase());
    if (event.key.length === 1 && place >= 0) {
      const audio = control("sounds").querySelectorAll("audio")[place];
      if (audio.paused) sounds.play(audio); else audio.pause();
    } else if (event.key === "Enter" && event.target.matches("input, h2, body")) {
      event.preventDefault();
      control("trial").requestSubmit();
    }
  });
  control("unkept").hidden = store.write("", "");
})();
