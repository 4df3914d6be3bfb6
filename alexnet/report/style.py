"""The style sheet of pages: colours for light and dark, and a layout that fits a phone."""

STYLE = """
:root { color-scheme: light dark; --back: #fff; --text: #1c2024; --soft: #5a6270; --line: #dcdfe4; --mark: #fff3c4;
  --link: #1a5fb4; --shade: #86b6ea;
  --c0: #2b6cb0; --c1: #c2571a; --c2: #2f855a; --c3: #b83280; --c4: #6b46c1; --c5: #8a6d00; }
@media (prefers-color-scheme: dark) {
  :root { --back: #14171a; --text: #e4e7ea; --soft: #a3abb5; --line: #33393f; --mark: #4a3f13;
    --link: #7db4f0; --shade: #2c5f98;
    --c0: #6cb2f5; --c1: #f4a261; --c2: #6fcf97; --c3: #f08cc0; --c4: #b39dfa; --c5: #e0c24a; }
}
* { box-sizing: border-box; }
html { scroll-padding-top: .5rem; }
body { margin: 0 auto; padding: 1rem; max-width: 75rem; background: var(--back); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; margin: .5rem 0; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
h2 a { color: inherit; text-decoration: none; } a { color: var(--link); }
h2 .back { font-size: .8rem; font-weight: normal; color: var(--link); margin-left: .5rem; }
nav ul { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; padding: 0; margin: .5rem 0; list-style: none; }
p, figcaption { color: var(--soft); margin: .3rem 0 .8rem; max-width: 52rem; } figcaption { margin: 0; }
.wide { overflow-x: auto; max-width: 100%; }
.side { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)); gap: 1rem; }
.side > * { min-width: 0; }
table { border-collapse: collapse; font-size: .9rem; overflow-wrap: normal; }
th, td { padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
td:first-child { min-width: 10.5rem; }
td.number { text-align: right; font-variant-numeric: tabular-nums; } tr.differs { background: var(--mark); }
th button { all: unset; cursor: pointer; } th button:focus-visible { outline: 2px solid var(--link); }
th button::after { content: " \\2195"; color: var(--soft); }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
figure { margin: 0; min-width: 0; } img { max-width: 100%; height: auto; background: #fff; border-radius: 6px; }
.wide > img { width: 100%; min-width: 44rem; max-width: none; } summary { cursor: pointer; }
svg { display: block; width: 100%; max-width: 34rem; height: auto; overflow: visible; }
svg text { fill: var(--soft); font: 11px system-ui, sans-serif; } svg path { fill: none; stroke-width: 1.8; }
svg .grid { stroke: var(--line); } svg .pale { opacity: .35; stroke-width: 1; }
svg .dotted { stroke-dasharray: 2 3; } svg .dashed { stroke-dasharray: 6 4; }
svg .hit { fill: transparent; } svg circle.hit:hover { fill: currentColor; }
svg .diagonal { stroke: var(--soft); stroke-dasharray: 4 4; stroke-width: 1; }
svg .bar { fill: var(--c0); } svg .bar.pale { opacity: .3; } svg .interval { stroke: var(--text); stroke-width: 1.2; }
svg .bar:hover rect:first-of-type { fill: var(--c1); }
path.c0 { stroke: var(--c0); } path.c1 { stroke: var(--c1); } path.c2 { stroke: var(--c2); }
path.c3 { stroke: var(--c3); } path.c4 { stroke: var(--c4); } path.c5 { stroke: var(--c5); }
circle { color: var(--text); } circle.dot { fill: currentColor; }
.c0 { color: var(--c0); } .c1 { color: var(--c1); } .c2 { color: var(--c2); }
.c3 { color: var(--c3); } .c4 { color: var(--c4); } .c5 { color: var(--c5); }
.keys { display: flex; flex-wrap: wrap; gap: .1rem .9rem; font-size: .8rem; }
.key::before { content: ""; display: inline-block; width: 1.4rem; margin-right: .3rem; vertical-align: middle;
  border-top: 2.5px solid; }
.key.pale { opacity: .5; } .key.dotted::before { border-top-style: dotted; }
.key.dashed::before { border-top-style: dashed; }
.matrix th, .matrix td:first-child { min-width: 2.1rem; }
.matrix td { padding: .15rem .3rem; min-width: 2.1rem; text-align: center; vertical-align: middle; }
.matrix th { font-weight: normal; } .matrix tbody th { text-align: right; white-space: nowrap; }
.matrix thead th.class { writing-mode: vertical-rl; transform: rotate(180deg); max-height: 10rem; text-align: left; }
.matrix td:first-child { min-width: 2.1rem; }
.matrix td { border: 1px solid var(--line);
  background: color-mix(in srgb, var(--shade) calc(var(--share, 0) * 100%), transparent); }
.matrix td a { display: block; color: inherit; }
.pair { display: none; scroll-margin-top: 40vh; } .pair:target { display: block; }
.tiles { display: flex; flex-wrap: wrap; gap: .6rem; margin: .5rem 0; }
.tiles figure { width: 6rem; font-size: .75rem; line-height: 1.25; }
.tile { display: block; width: 96px; height: 96px; border-radius: 4px; }
"""
