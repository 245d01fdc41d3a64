// In which order a search lists what it has found: first what has the word in its title, then names of the
// library that are this word, chapters, other pages; last, names that only contain it ("hang": "exchange").
const FOR_WHO_CHANGES_THE_COURSE = /^(CHANGELOG|CONTRIBUTING|docs\/(design|style))$/;

var Scorer = {
  score: ([page, , , , score]) =>
    score + (/^notebooks\/\d/.test(page) ? 1 : FOR_WHO_CHANGES_THE_COURSE.test(page) ? -10 : 0),
  objNameMatch: 11,
  objPartialMatch: 0,
  objPrio: { 0: 0, 1: 0, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 3,
  term: 5,
  partialTerm: 2,
};
