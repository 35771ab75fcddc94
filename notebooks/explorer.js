// The explorer page: pick a film or a text, see the nearest films and texts. Data: explorer_data.js.
"use strict";
(() => {
  const { films, texts } = EXPLORER;
  const TOP = 5;
  const picker = document.getElementById("explorer-query");
  const strip = document.getElementById("explorer-films");
  const answer = document.getElementById("explorer-answer");

  function make(tag, properties = {}, ...children) {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  }

  const cosine = (a, b) => a.embedding.reduce((sum, value, i) => sum + value * b.embedding[i], 0);
  const shows = (film) => film.truth.join(", ") || "nothing abnormal";
  const number = (film) => films.indexOf(film) + 1;
  const picture = (film) => make("img", { src: film.image, width: 64, height: 64,
    alt: `Film ${number(film)}: ${shows(film)}` });

  // The items with the highest cosine to the query, without the query itself.
  function nearest(query, items) {
    return items.filter((item) => item !== query)
      .map((item) => ({ item, score: cosine(query, item) }))
      .sort((a, b) => b.score - a.score);
  }

  // What is known of a film when a text asks: [whether the text is right for it, in words].
  function verdict(text, film) {
    const right = text.right.includes(films.indexOf(film));
    if (text.asks) return [right, right ? "shows it" : "does not show it"];
    return [right, right ? "the text is its report" : "has another report"];
  }

  // The same for a text when a film asks, and for a report when a finding asks (null: nothing to say).
  function verdictOfText(query, text) {
    if (films.includes(query)) {
      const right = text.right.includes(films.indexOf(query));
      if (text.asks) return [right, right ? "true of the film" : "not true of the film"];
      return [right, right ? "its own report" : "another film's report"];
    }
    if (!query.asks || text.asks) return null;
    const right = text.right.some((i) => query.right.includes(i));
    return [right, right ? "its film shows it" : "its film does not show it"];
  }

  function result(item, score, judged) {
    const isFilm = films.includes(item);
    const inside = isFilm ? [picture(item), `Film ${number(item)}`] : [item.text];
    const button = make("button", { type: "button", title: "Ask with this one" }, ...inside);
    button.addEventListener("click", () => ask(item));
    const lines = [button, make("span", { className: "cosine" }, `cosine ${score.toFixed(2)}`)];
    if (judged) {
      lines.push(make("span", { className: judged[0] ? "right" : "wrong" }, `${judged[0] ? "✓" : "✗"} ${judged[1]}`));
    }
    if (isFilm) lines.push(make("span", {}, `Truth: ${shows(item)}`));
    return make("li", {}, ...lines);
  }

  function section(title, className, query, items, judge) {
    const found = nearest(query, items).slice(0, TOP);
    const list = found.map(({ item, score }) => result(item, score, judge(item)));
    return [make("h2", {}, title), make("ol", { className }, ...list)];
  }

  // One sentence that counts: how many of the nearest are right, and how many there are.
  function count(query) {
    if (films.includes(query)) {
      const rank = nearest(query, texts.filter((text) => !text.asks))
        .findIndex(({ item }) => item === texts[query.text]) + 1;
      const reports = texts.filter((text) => !text.asks).length;
      return `Its own report is number ${rank} of ${reports} by cosine.`;
    }
    const found = nearest(query, films).slice(0, TOP).filter(({ item }) => verdict(query, item)[0]).length;
    const all = query.right.length;
    if (!query.asks) return `Films with this report: ${all} of ${films.length}; among the nearest ${TOP}: ${found}.`;
    return `Films that truly show it: ${all} of ${films.length}; among the nearest ${TOP}: ${found}.`;
  }

  function ask(query) {
    const film = films.includes(query);
    picker.value = film ? `film ${films.indexOf(query)}` : `text ${texts.indexOf(query)}`;
    for (const [i, button] of [...strip.children].entries()) {
      button.setAttribute("aria-pressed", String(films[i] === query));
    }
    const asked = film ? [picture(query), make("p", {}, `Film ${number(query)}. Truth: ${shows(query)}. `
      + `Report: “${texts[query.text].text}”`)] : [make("p", {}, `“${query.text}”`)];
    const reports = texts.filter((text) => !text.asks);
    const findings = texts.filter((text) => text.asks);
    answer.replaceChildren(
      make("div", { className: "asked" }, ...asked),
      make("p", { className: "count" }, count(query)),
      ...section("The nearest films", "films", query, films, (item) => (film ? null : verdict(query, item))),
      ...section("The nearest reports", "texts", query, reports, (item) => verdictOfText(query, item)),
      ...(film ? section("The nearest finding sentences", "texts", query, findings,
        (item) => verdictOfText(query, item)) : []));
  }

  const option = (kind, label) => (item, i) => make("option", { value: `${kind} ${i}`, textContent: label(item, i) });
  const textOptions = texts.map(option("text", (text) => text.text));
  const filmOptions = films.map(option("film", (film, i) => `Film ${i + 1}`));
  picker.append(
    make("optgroup", { label: "Findings" }, ...textOptions.filter((_, i) => texts[i].asks)),
    make("optgroup", { label: "Reports" }, ...textOptions.filter((_, i) => !texts[i].asks)),
    make("optgroup", { label: "Films" }, ...filmOptions));
  picker.addEventListener("change", () => {
    const [kind, i] = picker.value.split(" ");
    ask((kind === "film" ? films : texts)[Number(i)]);
  });
  for (const film of films) {
    const button = make("button", { type: "button" }, make("img", { src: film.image, width: 64, height: 64,
      alt: `Film ${number(film)}` }));
    button.addEventListener("click", () => ask(film));
    strip.append(button);
  }
  ask(texts.find((text) => text.asks));
})();
