"""Reports say what is in the case: every finding, the right side, nothing else; and in many words."""

import collections
import re

import numpy as np
import pytest

from cxrclip.data.phantom import reports
from cxrclip.data.phantom.anatomy import DEVICE_KINDS, FINDINGS, FRACTURE_KINDS, Case, Finding, sample_body
from cxrclip.data.sources.public import collision

# What a sentence must contain to be about a finding.
TERMS = {
    "Cardiomegaly": r"cardiomegaly|cardiac enlargement|enlargement of the heart|enlarged heart|"
    r"(heart|cardiac silhouette) is \w+ enlarged|heart size is \w+ increased",
    "Enlarged Cardiomediastinum": r"enlarged cardiomediastin|mediastinal widening|widened",
    "Aortic Enlargement": r"aortic (enlarge|dilat)|dilatation of the|aorta is \w+ dilated|(knob|arch) is|"
    r"enlarge(d|ment of the) aortic",
    "Edema": r"edema",
    "Consolidation": r"consolidation",
    "Pneumonia": r"pneumonia",
    "Infiltration": r"infiltrat",
    "Atelectasis": r"atelectasis|volume loss",
    "Pneumothorax": r"pneumothorax",
    "Pleural Effusion": r"effusion|pleural fluid",
    "Pleural Thickening": r"pleural thickening|thickened",
    "Fracture": r"fracture",
    "Support Devices": r"\b(tube|(?<!pleural )line|catheter|pacemaker|wires|support devices?)\b",
    "Emphysema": r"emphysema",
    "Fibrosis": r"fibro",
    "Hernia": r"hernia",
    "Mass": r"\bmass\b|lung tumor",
    "Nodule": r"nodule",
    "Calcification": r"calcif|granuloma",
    "Tuberculosis": r"tuberculosis",
}
NOT_ASSERTED = re.compile(
    r"\b(no|negative for|not|without|possible|questionable|may|might|could|can|cannot|uncertain|suspected|likely|"
    r"favored|free|excluded)\b",
    re.IGNORECASE,
)
DENIED = re.compile(r"(\w+: )?(there is )?no |negative", re.IGNORECASE)
# What a sentence may say of a finding without naming it ("Intubated, tube tip in the mid trachea.").
OTHER_WORDS = ["intubated", "sternotomy", "airspace", "density", "heart", "cardiac", "mediast", "aort", "changes",
               "nodular", "pleural", "broken"]  # fmt: skip
LEADING = re.compile(r"^(\w+( \w+)*: )?((left|right|bilateral)(-sided)? )?")  # heading and side
# Slips of grammar.
ODD = re.compile("|".join((
    r"[{}\[\]()|+<>]", r"\s\s", r"^\s|\s$", r"[.,;:][.,;:]", r"\s[.,;:]",  # unfilled slots, gaps, stray punctuation
    r"^[a-z]", r"\. [a-z]", r"\b(\w+) \1\b", r"sss",
    r"\b[Aa] [aeiou]", r"\b[Aa]n [^aeiou\W]", r"\b[Aa]n? an?\b",
    r"\bis are\b|\bare is\b", r"\b(wires|changes|opacities|markings|nodules|infiltrates|effusions) is\b",
    r"\b([Ee]ach|[Aa]n?) ([\w-]+ ){,3}(effusions|nodules|infiltrates)\b",
    r"\b(a|an|the|of|in|on|with|from|or|is|are)[.,;:]", r"\band[.;:]", r"\bin amount\b",
    r"-sided-", r"\b(left|right)-sided (side|lobe|zone) ",
)))  # fmt: skip
# The body's own sides, not a finding's.
OF_THE_BODY = re.compile(r"hemidiaphragm|scoliosis|spin(e|al)|ventric|atrium|quadrant|bilaterally", re.IGNORECASE)


def some_finding(name, rng):
    sided = name not in ("Cardiomegaly", "Enlarged Cardiomediastinum", "Aortic Enlargement", "Hernia")
    zoned = name in reports.AIRSPACE + reports.ROUND or name in ("Atelectasis", "Fibrosis", "Pleural Thickening")
    kinds = {"Support Devices": DEVICE_KINDS, "Fracture": FRACTURE_KINDS}.get(name, (None,))
    side = "both" if name in ("Edema", "Emphysema") else str(rng.choice(["left", "right"])) if sided else None
    return Finding(
        name,
        side,
        str(rng.choice(["upper", "mid", "lower"])) if zoned else None,
        int(rng.integers(1, 4)),
        kinds[int(rng.integers(len(kinds)))],
    )


def cases(n, seed=0, healthy=0.3):
    rng = np.random.default_rng(seed)
    for i in range(n):
        count = 0 if rng.random() < healthy else int(rng.integers(1, 5))
        names = rng.choice(FINDINGS, count, replace=False)
        yield Case(sample_body(rng), tuple(some_finding(str(name), rng) for name in names), i)


def both_sections(case, habit, seed=0, views=("PA",)):
    rng = np.random.default_rng([case.seed, seed])
    return reports.findings_section(case, habit, rng, views), reports.impression_section(case, habit, rng, views)


def sentences(text):
    return [s for s in re.split(r"(?<=[a-z)])\.\s*|\d\. ", text) if s]


def asserted(text):
    """Names a text asserts, by TERMS, in sentences that neither deny nor hedge."""
    plain = [s for s in sentences(text) if not NOT_ASSERTED.search(s)]
    return {name for name, term in TERMS.items() for s in plain if re.search(term, s, re.IGNORECASE)}


@pytest.mark.parametrize("habit", reports.HABITS)
def test_nothing_absent_is_asserted(habit):
    for case in cases(400):
        for text in both_sections(case, habit):
            extra = asserted(text) - {f.name for f in case.findings}
            assert not extra, (extra, case.findings, text)


@pytest.mark.parametrize("habit", reports.HABITS)
def test_every_finding_is_said_or_hedged_in_the_findings(habit):
    words = reports.lexicon()
    for case in cases(200, seed=1, healthy=0):
        text, _ = both_sections(case, habit)
        for finding in case.findings:
            umbrella = [t for n, ts in words["derived"].items() if reports.DERIVED[n](finding) for t in ts]
            term = "|".join([TERMS[finding.name], *umbrella, *OTHER_WORDS])
            affirmed = [s for s in sentences(text) if not DENIED.match(s)]
            assert any(re.search(term, s, re.IGNORECASE) for s in affirmed), (finding, text)


@pytest.mark.parametrize(("name", "term"), TERMS.items())
def test_terms_find_their_own_finding(name, term):
    """The two tests above bite only if asserted() sees most of what is asserted."""
    rng = np.random.default_rng(2)
    seen = 0
    for i in range(60):
        finding = some_finding(name, rng)
        case = Case(sample_body(rng), (finding,), i)
        sure = bool(reports.read(case).sure)
        seen += (not sure) or name in asserted(both_sections(case, "narrative")[0])
    assert seen >= 45


@pytest.mark.parametrize("side", ["left", "right"])
def test_sides_agree_with_the_case(side):
    other = {"left": "right", "right": "left"}[side]
    rng = np.random.default_rng(3)
    names = sorted(set(FINDINGS) - {"Edema", "Emphysema"})
    for i in range(600):
        picked = [some_finding(str(name), rng) for name in rng.choice(names, 3, replace=False)]
        findings = tuple(Finding(f.name, f.side and side, f.zone, f.severity, f.kind) for f in picked)
        case = Case(sample_body(rng), findings, i)
        for text in both_sections(case, reports.HABITS[i % 5]):
            wrong = [s for s in sentences(text) if re.search(rf"\b{other}\b|bilateral|both sides", s, re.IGNORECASE)]
            assert all(OF_THE_BODY.search(s) for s in wrong), (findings, text)


def test_both_sides_are_called_so():
    case = Case(sample_body(np.random.default_rng(0)), (Finding("Pleural Effusion", "both", None, 3),), 5)
    for seed in range(50):
        text = " ".join(both_sections(case, "narrative", seed))
        about = [s for s in sentences(text) if re.search("effusion|fluid", s)]
        assert not any(re.search(r"\b(left|right)\b", s) for s in about)
    assert any(re.search("bilateral|both", both_sections(case, "narrative", k)[0], re.IGNORECASE) for k in range(5))


def test_severity_words_differ():
    body = sample_body(np.random.default_rng(0))

    def text(severity):
        case = Case(body, (Finding("Pleural Effusion", "right", None, severity),), 7)
        texts = [" ".join(both_sections(case, h, k)) for h in reports.HABITS for k in range(20)]
        return " ".join(s for t in texts for s in sentences(t) if re.search("effusion|fluid", s)).lower()

    assert re.search("small|trace|minimal", text(1))
    assert not re.search("small|trace|minimal|moderate", text(3))
    assert re.search("large|massive", text(3))
    assert not re.search(r"\b(large|massive)\b", text(1))


def test_every_finding_is_named_plainly():
    """A bare name must not be seen only after "no"."""
    plain = collections.Counter()
    for case in cases(1500, seed=4, healthy=0):
        for text in both_sections(case, reports.HABITS[case.seed % 5]):
            said = {LEADING.sub("", s.lower()) for s in sentences(text)}
            for key, entry in reports.lexicon()["findings"].items():
                plain[key.split("/")[0]] += bool(said & set(entry["names"]))
    assert min(plain[name] for name in FINDINGS) >= 20, plain


def test_a_report_never_denies_what_is_there_or_its_double():
    for case in cases(1500, seed=5, healthy=0):
        names, reading = {f.name for f in case.findings}, reports.read(case)
        denied = {key.split("/")[0] for key in reading.denied}
        assert not denied & names
        assert not denied & {rival for _, rival in reading.hedged}
        for group in (reports.AIRSPACE, reports.ROUND):
            assert not (names & set(group) and denied & set(group))


def test_hedges_are_for_mild_findings():
    share = {1: [], 2: [], 3: []}
    for case in cases(3000, seed=6, healthy=0):
        hedged = [f for f, _ in reports.read(case).hedged]
        for f in case.findings:
            if f.name != "Support Devices":
                share[f.severity].append(f in hedged)
            else:
                assert f not in hedged
    for severity, rate in reports.HEDGED.items():
        assert abs(np.mean(share[severity]) - rate) < 0.04


def test_rivals_are_absent_findings_or_look_alikes():
    for case in cases(1000, seed=7, healthy=0):
        for finding, rival in reports.read(case).hedged:
            entry = reports._entry(finding)
            assert rival is None or rival in entry.get("mimics", []) or rival in set(entry["alternatives"])
            assert rival not in {f.name for f in case.findings}


def test_healthy_reports_share_stock_sentences_and_remarks_are_true():
    rng = np.random.default_rng(8)
    healthy = [Case(sample_body(rng), (), i) for i in range(1000)]
    texts = [both_sections(case, reports.HABITS[1 + case.seed % 3]) for case in healthy]
    for section, low, high in ((0, 0.005, 0.04), (1, 0.06, 0.16)):
        assert low < collision(t[section] for t in texts) < high
    for case, (findings, _) in zip(healthy, texts, strict=True):
        if re.search("degenerative|spondylosis|osteophyte", findings, re.IGNORECASE):
            assert case.body.age > 60
        if re.search("young", findings, re.IGNORECASE):
            assert case.body.age < 32
        if re.search("convex left|leftward|curved to the left|convex to the left", findings, re.IGNORECASE):
            assert case.body.spine_curve > 0


def test_two_sections_differ_and_the_impression_is_shorter():
    lengths = np.array([[len(t) for t in both_sections(case, reports.HABITS[case.seed % 5])] for case in cases(400, 9)])
    assert (lengths[:, 1] < lengths[:, 0]).mean() > 0.9
    assert 2 * lengths[:, 1].mean() < lengths[:, 0].mean()


def test_impression_leads_with_what_matters():
    body = sample_body(np.random.default_rng(0))
    findings = (Finding("Calcification", "left", "upper", 1), Finding("Pneumothorax", "right", None, 3))
    for seed in range(30):
        text = both_sections(Case(body, findings, seed), "numbered", seed)[1]
        assert re.search("pneumothorax|mediastinal shift", sentences(text)[0], re.IGNORECASE), text


def test_sections_are_deterministic_and_well_formed():
    for case in cases(1000, seed=10):
        for habit in reports.HABITS:
            texts = both_sections(case, habit)
            assert texts == both_sections(case, habit)
            for text in texts:
                assert text
                assert text == " ".join(text.split())
                assert not ODD.search(text), text
                assert all(s[0].isupper() or s[0].isdigit() for s in sentences(text)), text


def test_technique_names_the_projection():
    case = Case(sample_body(np.random.default_rng(0)), (), 1)
    for seed in range(200):
        ap = both_sections(case, "verbose", seed, views=("AP",))[0]
        assert not re.search(r"\bPA\b|lateral view|well expanded", ap)
        pair = both_sections(case, "verbose", seed, views=("PA", "LATERAL"))[0]
        assert not re.search(r"\bAP\b|bedside", pair)


def test_labels_follow_the_reading():
    rng = np.random.default_rng(11)
    for case in cases(500, seed=12):
        positive, negative, uncertain = reports.report_labels(case, rng, slips=0.0)
        reading = reports.read(case)
        present = {n for f in case.findings for n in reports.chexpert_names(f)}
        assert set(positive) - {"No Finding"} == {n for f in reading.sure for n in reports.chexpert_names(f)}
        assert not set(negative) & present
        suspected = {n for f, _ in reading.hedged for n in reports.chexpert_names(f)}
        assert suspected <= set(positive) | set(uncertain)
        assert ("No Finding" in positive) == all(f.name == "Support Devices" for f in case.findings)
        together = positive + negative + uncertain
        assert len(together) == len(set(together))
        assert set(together) <= set(reports.CHEXPERT)


def test_labeller_slips_at_the_stated_rate():
    rng = np.random.default_rng(13)
    body = sample_body(rng)
    case = Case(body, (Finding("Pneumothorax", "left", None, 3),), 0)
    missed = np.mean(["Pneumothorax" not in reports.report_labels(case, rng, slips=0.1)[0] for _ in range(2000)])
    assert abs(missed - 0.1) < 0.03


def reworded(n, seed):
    """(case, plan, text, paraphrase) of findings and impressions."""
    for case in cases(n, seed):
        for plan in (reports.plan_findings, reports.plan_impression):
            habit, rng = reports.HABITS[case.seed % 5], np.random.default_rng(case.seed)
            content = plan(case, habit, rng)
            yield case, content, reports.word(content, habit, rng), reports.paraphrase(content, habit, rng)


def test_paraphrases_are_other_words_for_the_same_case():
    same, alike = {}, []
    for k, (case, _, text, other) in enumerate(reworded(1000, seed=14)):
        same.setdefault(k % 2, []).append(text == other)
        words, others = set(text.lower().split()), set(other.lower().split())
        alike.append(len(words & others) / len(words | others))
        assert asserted(other) <= {f.name for f in case.findings}, (case.findings, other)
    assert max(map(np.mean, same.values())) < 0.05
    assert np.mean(alike) < 0.4


def test_paraphrases_keep_sides_and_what_is_denied():
    for case, plan, text, other in reworded(300, seed=15):
        for side, opposite in (("left", "right"), ("right", "left")):
            if case.findings and all(f.side in (None, side) for f in case.findings):
                about = [s for s in sentences(other) if not OF_THE_BODY.search(s)]
                assert not any(re.search(rf"\b{opposite}\b", s, re.IGNORECASE) for s in about), (text, other)
        for key in (key for said in plan.statements if said.kind == "denied" for key in said.about):
            assert any(name in other for name in reports.lexicon()["findings"][key]["names"]), (key, other)


def test_lexicon_is_complete():
    """Every finding and kind has an entry, every remark a rule, every habit its frames."""
    words = reports.lexicon()
    kinds = {"Support Devices": DEVICE_KINDS, "Fracture": FRACTURE_KINDS}
    assert set(words["findings"]) == {f"{n}/{k}" if k else n for n in FINDINGS for k in kinds.get(n, (None,))}
    body = sample_body(np.random.default_rng(0))
    assert all(hasattr(body, part) for remark in words["remarks"].values() for part in remark["when"])
    assert {remark.get("unless", "Mass") for remark in words["remarks"].values()} <= set(FINDINGS)
    assert set(words["derived"]) == set(reports.DERIVED)
    assert set(words["habits"]) == set(words["frames"]) == set(reports.HABITS)
    for entry in words["findings"].values():
        assert set(entry.get("alternatives", [])) <= set(FINDINGS)
