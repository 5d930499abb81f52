"""Texts that models, files and specs may hold, and that must do nothing on a page but be read.

Each that could execute anything sets `window.executed`, which a browser test then looks for.
"""

import itertools
import json

from trl_opd.boards.schema import Results

RUN = "window.executed=1"
TEXTS = (
    f"</script><script>{RUN}</script>",
    f"</SCRIPT ><sCrIpT>{RUN}</script>",
    f"<!--<script>{RUN}</script>-->",
    f"<img src=x onerror={RUN}>",
    f"<svg/onload={RUN}><animate onbegin={RUN} attributeName=x dur=1s>",
    f'"><iframe srcdoc="<script>parent.{RUN}</script>"></iframe>',
    f"' onmouseover='{RUN}' autofocus onfocus='{RUN}' x='",
    f'" onclick="{RUN}" style="position:fixed;inset:0" x="',
    f'<a href="javascript:{RUN}">click</a> javascript:{RUN}',
    f"<details open ontoggle={RUN}><summary>x</summary></details>",
    f"</title></style></textarea></noscript></template></pre></dialog><script>{RUN}</script>",
    "<style>@import 'https://example.invalid/x.css'; * { background: url(https://example.invalid/x.png) }</style>",
    "<link rel=stylesheet href=https://example.invalid/x.css><meta http-equiv=refresh content='0;url=https://example.invalid'>",
    "<base href=https://example.invalid/><form action=https://example.invalid><button>x</button></form>",
    "url(https://example.invalid/x.png); } body { display: none",
    "{{ 7 * 7 }} {% raw %} ${7 * 7} #{7 * 7} <%= 7 * 7 %> {# x #}",
    f'"}}]}};{RUN};//',
    f'\\"}}]}});{RUN};// \\u003cscript\\u003e{RUN}\\u003c/script\\u003e',
    f"]]><script>{RUN}</script><![CDATA[",
    "line\u2028separator\u2029paragraph",
    "\u202eright to left\u202c \u2067isolated\u2069 zero\u200bwidth \ufeff",
    "null \x00 byte, bell \x07, escape \x1b[31m, delete \x7f, half a pair \ud800",
    "&lt;script&gt; &amp;lt; &#60;img src=x onerror=1&#62; &nbsp",
    "a" * 30_000,
    "__proto__",
    "",
)
"""In the order in which `hostile_results` deals them out."""

KEYS = {"opd": "__proto__", "sum-000": "__proto__", "sum-001": "constructor", "sum-002": TEXTS[0], "sum-003": TEXTS[7]}
"""Names of a line and of problems that become keys of objects."""


def hostile_results(results: Results) -> Results:
    """The same board with hostile names, labels, questions, answers, errors, settings and notes."""
    text = json.dumps(results)
    for name, hostile in KEYS.items():
        text = text.replace(json.dumps(name), json.dumps(hostile))
    poisoned = json.loads(text)
    deal = map(_short, itertools.cycle(TEXTS)).__next__
    complete = itertools.cycle(TEXTS).__next__
    poisoned.update(
        title=TEXTS[10], description=TEXTS[11], base_model=TEXTS[20], notes=list(TEXTS), warnings=list(TEXTS)
    )
    poisoned["provenance"] = {TEXTS[0]: [deal()], "versions": {deal(): [deal()]}}
    for row in poisoned["rows"]:
        row.update(label=deal(), warnings=[deal()])
        for trial in row["trials"]:
            trial["error"] = deal() if trial["status"] == "failed" else None
    for run in poisoned["runs"]:
        run.update(
            error=deal(), commands=[deal()], settings_hash=deal(), hardware=deal(), config={deal(): deal()},
            overrides={deal(): [deal()]}, versions={deal(): deal()}, files={deal(): deal()},
            evaluation={deal(): {deal(): {deal(): deal()}}}, not_comparable=deal(),
        )  # fmt: skip
    for problems in poisoned["problems"].values():
        problems["questions"] = {problem: deal() for problem in problems["ids"]}
        for answers in problems["answers"].values():
            for answer in answers.values():
                answer.update(completion=complete(), extracted=deal(), reason=deal(), run=deal())
    return poisoned


def _short(text: str) -> str:
    return text[:300]
