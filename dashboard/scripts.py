"""The pages' own scripts: a few lines for what no widget of Streamlit can do.

They move the focus, press a button, or show a value that the page has already, and ask the server nothing.
"""

KEYS = """
if (!window.frmKeys) {
  window.frmKeys = true;
  document.addEventListener('keydown', event => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const note = document.querySelector('.st-key-frm-verdicts input'), at = event.target;
    if (at.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(at.tagName)) {
      if (at === note && (event.key === 'Enter' || event.key === 'Escape')) setTimeout(() => note.blur());
    } else if (event.key.toLowerCase() === 't' && note) {
      event.preventDefault();
      note.focus();
    } else if (event.key === '?') {
      document.querySelector('.st-key-sheet button')?.click();
    }
  });
}
"""
"""`?`, and a key that puts the cursor into the note: Streamlit binds letters and digits to buttons alone."""

POINTING = """
if (!window.frmPointing) {
  window.frmPointing = true;
  const read = grid => ['x', 'y', 'values'].map(name => grid.dataset[name].split(' ').map(Number));
  const show = (grid, column, row) => {
    const [x, y, values] = read(grid), columns = x.length - 1, rows = y.length - 1;
    column = Math.min(Math.max(column, 0), columns - 1);
    row = Math.min(Math.max(row, 0), rows - 1);
    const value = (values[row * columns + column] / 100).toFixed(2), [mark, heard] = grid.children;
    mark.style.inset = `${y[row]}% ${100 - x[column + 1]}% ${100 - y[row + 1]}% ${x[column]}%`;
    mark.dataset.value = value;
    mark.className = row ? '' : 'frm-below';
    mark.hidden = false;
    grid.dataset.at = `${column} ${row}`;
    if (grid === document.activeElement)
      heard.textContent = `${value} in row ${row + 1} of ${rows}, column ${column + 1} of ${columns}`;
  };
  document.addEventListener('pointermove', event => {
    const grid = event.target.closest?.('.frm-grid');
    for (const one of document.querySelectorAll('.frm-grid'))
      if (one !== grid && one !== document.activeElement) one.firstElementChild.hidden = true;
    if (!grid) return;
    const box = grid.getBoundingClientRect(), [x, y] = read(grid);
    const cell = (edges, share) => edges.findLastIndex(edge => edge <= 100 * share);
    show(grid, cell(x, (event.clientX - box.left) / box.width), cell(y, (event.clientY - box.top) / box.height));
  });
  document.addEventListener('focusin', event => {
    const grid = event.target;
    if (!grid.matches('.frm-grid')) return;
    const [x, , values] = read(grid), highest = values.indexOf(Math.max(...values)), columns = x.length - 1;
    show(grid, highest % columns, Math.floor(highest / columns));
  });
  document.addEventListener('focusout', event => {
    if (event.target.matches('.frm-grid')) event.target.firstElementChild.hidden = true;
  });
  document.addEventListener('keydown', event => {
    const step = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key];
    if (!step || !event.target.matches('.frm-grid') || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const [column, row] = (event.target.dataset.at ?? '0 0').split(' ').map(Number);
    show(event.target, column + step[0], row + step[1]);
  });
}
"""
"""The value of the patch under the pointer, and of the one that the arrow keys went to; see `pictures.values`."""
