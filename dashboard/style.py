"""The pages' style sheet: a little on top of the theme (see `serve`), in colours that hold on light and on dark."""

STYLE = """
<style>
.stMainBlockContainer { max-width: 1240px; padding-inline: 2.5rem; }
@media (min-width: 1900px) and (min-height: 1100px) { /* a large screen: more room, and pictures that fill it */
  .stMainBlockContainer { max-width: 1640px; }
  [data-testid="stLayoutWrapper"]:has(> [class*="st-key-frm-hover-"]) { zoom: 1.5; } /* it has the width */
}
/* White on a blue that can be read on dark cannot be read. */
button[kind="primary"] { color: light-dark(#ffffff, #11141a); }
.frm-icon { font-family: 'Material Symbols Rounded'; font-size: 1.1em; line-height: 1; font-style: normal;
  font-weight: 400; vertical-align: -0.18em; font-feature-settings: 'liga'; user-select: none; }
.frm-quiet, .frm-aside { color: color-mix(in srgb, currentColor 65%, transparent); font-size: 0.875rem;
  overflow-wrap: anywhere; }
.frm-mark { font: 600 0.7em monospace; padding: 0 0.3em; border: 1px solid currentColor; border-radius: 0.25em;
  unicode-bidi: isolate; direction: ltr; opacity: 0.75; white-space: nowrap; }
bdi { unicode-bidi: isolate; }

.frm-title, .frm-section { display: flex; align-items: baseline; gap: 0.75rem; flex-wrap: wrap; }
.frm-title h1 { font-size: 1.5rem; font-weight: 650; letter-spacing: -0.01em; padding: 0; margin: 0;
  line-height: 2.25rem; }
.frm-section h2 { font-size: 1rem; font-weight: 600; padding: 0; margin: 0; }
.frm-aside { font-variant-numeric: tabular-nums; }

.frm-grey { --tone: #8a93a3; } .frm-amber { --tone: #c27a00; } .frm-green { --tone: #2b9a66; }
.frm-red { --tone: #d9485f; } .frm-blue { --tone: #4c7df0; }
.frm-badges { display: flex; flex-wrap: wrap; gap: 0.4rem; align-items: center; }
.frm-badge { display: inline-flex; align-items: center; gap: 0.3em; padding: 0.1rem 0.55rem 0.1rem 0.4rem;
  border-radius: 1rem; font-size: 0.8125rem; font-weight: 550; white-space: nowrap;
  background: color-mix(in srgb, var(--tone) 14%, transparent);
  border: 1px solid color-mix(in srgb, var(--tone) 45%, transparent); }
.frm-badge .frm-icon, .frm-notice .frm-icon { color: var(--tone); }
.frm-notice { display: flex; gap: 0.6rem; align-items: flex-start; padding: 0.6rem 0.8rem; border-radius: 0.5rem;
  background: color-mix(in srgb, var(--tone) 12%, transparent);
  border: 1px solid color-mix(in srgb, var(--tone) 45%, transparent); }
.frm-notice .frm-icon { margin-top: 0.2em; font-size: 1.25em; }

.frm-confidence { display: flex; align-items: center; gap: 0.8rem; line-height: 1.3; }
.frm-confidence strong { font-size: 2.25rem; line-height: 1.1; font-weight: 650; letter-spacing: -0.02em;
  font-variant-numeric: tabular-nums; }
.frm-bar { position: relative; height: 0.5rem; border-radius: 0.25rem; margin: 0.55rem 0 0.6rem;
  background: color-mix(in srgb, currentColor 12%, transparent); }
.frm-bar b { position: absolute; inset: 0 auto 0 0; border-radius: 0.25rem; background: #4c7df0; min-width: 3px; }
.frm-bar i { position: absolute; top: -0.25rem; bottom: -0.25rem; width: 2px; margin-left: -1px;
  background: currentColor; }
p.frm-why { margin: 0.2rem 0 0; font-size: 0.9375rem; }
/* At the foot, because above it would lie on the next case. */
[data-testid="stToastContainer"] { top: auto !important; bottom: 1rem; }

.frm-said h3 { font-size: 0.75rem; font-weight: 600; letter-spacing: 0.05em; text-transform: uppercase; padding: 0;
  margin: 0 0 0.15rem; color: color-mix(in srgb, currentColor 70%, transparent); }
.frm-text { font-size: 1.0625rem; line-height: 1.45; white-space: pre-wrap; overflow-wrap: anywhere; overflow: auto;
  max-height: 6.2rem; margin-bottom: 0.7rem; }
.frm-answer { font-weight: 600; margin-bottom: 0; max-height: 7.6rem; }

/* Over a picture: says the value of the patch that is pointed at or gone to (see scripts.POINTING). */
[class*="st-key-frm-hover-"] { position: relative; }
[class*="st-key-frm-hover-"] > .stElementContainer:has(.frm-over) { position: absolute; inset: 0;
  width: 100% !important; pointer-events: none; }
.frm-over { position: relative; }
.frm-grid { position: absolute; pointer-events: auto; cursor: crosshair; }
.frm-grid:focus-visible { outline: 2px solid #3557d6; outline-offset: 2px; box-shadow: 0 0 0 2px #fff; }
.frm-grid i { position: absolute; outline: 2px solid #fff; box-shadow: 0 0 0 3px #14171d; z-index: 1;
  pointer-events: none; }
.frm-grid i::after { content: attr(data-value); position: absolute; left: 50%; bottom: calc(100% + 7px);
  transform: translateX(-50%); padding: 0.1rem 0.4rem; border-radius: 0.3rem; background: #14171d; color: #fff;
  font: 600 0.8125rem/1.3 'Source Sans', sans-serif; font-variant-numeric: tabular-nums; white-space: nowrap; }
.frm-grid i.frm-below::after { bottom: auto; top: calc(100% + 7px); }
.frm-grid output { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
/* What takes no room: the scripts, and the next case's picture, which the browser fetches ahead. */
[data-testid="stLayoutWrapper"]:has(> :is(.st-key-frm-ahead, .st-key-frm-scripts)) {
  position: absolute; width: 1px; height: 1px; overflow: hidden; visibility: hidden; }

.frm-legend { display: flex; align-items: center; gap: 0.5rem; font-size: 0.8125rem; font-variant-numeric: tabular-nums;
  color: color-mix(in srgb, currentColor 75%, transparent); }
.frm-ramp { width: 7rem; height: 0.6rem; border-radius: 0.3rem; }

.frm-table { width: 100%; border-collapse: collapse; font-size: 0.9375rem; }
.frm-table th { text-align: left; font-weight: 600; font-size: 0.8125rem; padding: 0.3rem 0.75rem 0.3rem 0;
  color: color-mix(in srgb, currentColor 65%, transparent); }
.frm-table td { padding: 0.35rem 0.75rem 0.35rem 0;
  border-top: 1px solid color-mix(in srgb, currentColor 12%, transparent);
  vertical-align: top; overflow-wrap: anywhere; white-space: pre-wrap; }
.frm-table .frm-number { text-align: right; font-variant-numeric: tabular-nums; padding-right: 0; white-space: nowrap; }
.frm-table code { font-size: 0.75rem; padding: 0; background: none;
  color: color-mix(in srgb, currentColor 65%, transparent); }
.frm-pull { display: flex; align-items: center; gap: 0.6rem; font-variant-numeric: tabular-nums; white-space: nowrap; }
.frm-pullbar { position: relative; width: 7rem; height: 0.7rem; flex: none;
  background: linear-gradient(currentColor, currentColor) center / 1px 100% no-repeat; }
.frm-pullbar b { position: absolute; top: 0.1rem; bottom: 0.1rem; border-radius: 2px; }
.frm-pullbar .frm-down { right: 50%; background: #d0661a; }
.frm-pullbar .frm-up { left: 50%; background: #3f7ae0; }
.frm-related { display: grid; grid-template-columns: minmax(0, 1fr) auto; gap: 0.15rem 0.9rem; align-items: center; }
.frm-related .frm-line, .frm-row .frm-line { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.frm-table .frm-number + * { padding-left: 0.75rem; }
.frm-row { display: grid; grid-template-columns: 3.6rem minmax(0, 1fr) auto; gap: 0.15rem 0.9rem; align-items: center; }
.frm-row strong { font-size: 1.05rem; font-variant-numeric: tabular-nums; text-align: right; }

.frm-sheet { position: fixed; right: 1.5rem; bottom: 1.5rem; z-index: 1000; width: 24rem; max-height: 85vh;
  overflow: auto; padding: 1rem 1.25rem; border-radius: 0.6rem; background: Canvas; color: CanvasText;
  color-scheme: light;
  border: 1px solid color-mix(in srgb, currentColor 25%, transparent); box-shadow: 0 0.5rem 2rem rgb(0 0 0 / 0.3); }
.frm-sheet h2 { font-size: 1rem; font-weight: 600; padding: 0 0 0.4rem; margin: 0; }
.frm-sheet td:first-child { font-weight: 600; white-space: nowrap; width: 3rem; }
.st-key-frm-four { display: grid; grid-template-columns: 1fr 1fr; gap: 0.5rem; }
.st-key-frm-tags button { min-height: 1.9rem; padding: 0 0.5rem; }
.st-key-frm-tags button, .st-key-frm-tags button p { font-size: 0.8125rem; }

.frm-empty { text-align: center; padding: 2.5rem 1rem; border-radius: 0.5rem;
  border: 1px dashed color-mix(in srgb, currentColor 25%, transparent); }
.frm-empty .frm-icon { font-size: 2.5rem; opacity: 0.55; }
.frm-empty h3 { font-size: 1.0625rem; font-weight: 600; padding: 0.5rem 0 0.2rem; margin: 0; }
.frm-empty p { margin: 0 auto; max-width: 34rem; color: color-mix(in srgb, currentColor 75%, transparent); }
</style>
"""
