"""The style sheet of the heat map, light and dark: a blue scale for the share, orange for wrong results."""

from __future__ import annotations

STYLE = """
:root {
  --page: #fff; --ink: #1c2126; --soft: #5b6670; --line: #d5dbe1; --head: #f4f6f8;
  --good: #116329; --bad: #b3261e; --over: #c8330a; --over-ink: #fff; --hatch: #f3c4b4;
  --s0: #f3f8fd; --s1: #e2eefa; --s2: #cbe0f4; --s3: #a9cdeb; --s4: #7cb2de; --s5: #4a8fc7; --s6: #1f63a0;
  --ink-low: #1c2126; --ink-5: #fff; --ink-6: #fff;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14181c; --ink: #e6eaee; --soft: #9aa6b1; --line: #333c45; --head: #1d2329;
    --good: #57d17e; --bad: #ff8f76; --over: #ff7a52; --over-ink: #14181c; --hatch: #5a2b1e;
    --s0: #182028; --s1: #1b2a38; --s2: #1f3850; --s3: #25496b; --s4: #2f6291; --s5: #4a8cc4; --s6: #8cc4f2;
    --ink-low: #e6eaee; --ink-5: #0b1015; --ink-6: #0b1015;
  }
}
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", sans-serif; }
main { max-width: max-content; margin: 0 auto; padding: 1.5rem 2rem 3rem; }
h1 { font-size: 1.5rem; margin: 0; }
h2 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
p, ul { max-width: 62rem; margin: .5rem 0; }
ul { padding-left: 1.2rem; }
li { overflow-wrap: anywhere; }
.verdict { font-size: 1.15rem; font-weight: 600; margin: .2rem 0 .8rem; }
.verdict.good { color: var(--good); }
.verdict.bad { color: var(--bad); }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1rem; align-items: center; margin: .4rem 0; font-size: .85rem; }
p.legend { max-width: none; }
* + p.legend { margin-top: 1rem; }
p.legend + p.legend { margin-top: .4rem; }
.legend b { min-width: 8.5rem; }
.legend span { display: inline-flex; gap: .4rem; align-items: center; white-space: nowrap; }
.legend i { width: 1.9rem; height: 1.3rem; line-height: 1.3rem; text-align: center; font-style: normal; }
table { border-collapse: separate; border-spacing: 1px; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); font-size: .85rem; padding: .5rem 0 .8rem; }
thead { position: sticky; top: 0; z-index: 1; background: var(--head); }
thead th { font-weight: 600; padding: .2rem .5rem; background: var(--head); }
thead small { font-weight: 400; color: var(--soft); }
thead tr:last-child th { font-weight: 400; font-size: .85rem; }
.corner { text-align: left; vertical-align: bottom; }
th[scope=rowgroup] { text-align: left; font-weight: 400; color: var(--soft); padding: .9rem 0 .15rem; }
th[scope=rowgroup] b { color: var(--ink); }
th[scope=row] { text-align: left; font-weight: 400; white-space: nowrap; padding: 0 1rem 0 0; position: sticky; left: 0;
  background: var(--page); }
th[scope=row] em { color: var(--soft); font-style: normal; font-size: .8rem; padding-left: .35rem; }
td { min-width: 4.1rem; height: 1.55rem; padding: 0 .3rem; text-align: center; font-size: .85rem; white-space: nowrap; }
.edge { border-left: .5rem solid var(--page); }
.s0, .s1, .s2, .s3, .s4 { color: var(--ink-low); }
.s0 { background: var(--s0); } .s1 { background: var(--s1); } .s2 { background: var(--s2); }
.s3 { background: var(--s3); } .s4 { background: var(--s4); }
.s5 { background: var(--s5); color: var(--ink-5); }
.s6 { background: var(--s6); color: var(--ink-6); }
.over { background: var(--over); color: var(--over-ink); font-weight: 700; box-shadow: inset 0 0 0 2px var(--ink); }
.failed {
  color: var(--ink); font-weight: 700; box-shadow: inset 0 0 0 2px var(--over);
  background: repeating-linear-gradient(135deg, var(--page) 0 5px, var(--hatch) 5px 10px);
}
.none { color: var(--soft); }
"""
