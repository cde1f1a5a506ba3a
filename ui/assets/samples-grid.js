// The grid of samples and the groups: open a tile, turn the page, go from token to token. The sample that is open stands in the
// address, where the panel beside the grid (samples-panel.js) finds it as well, and a reload does.
const open = (key, step) => {
  const address = new URL(location);
  for (const [name, value] of Object.entries({sample: key, step}))
    value == null ? address.searchParams.delete(name) : address.searchParams.set(name, value);
  history.replaceState(null, '', address);
  window.dispatchEvent(new Event('studio-sample'));
};
const mark = () => {
  const asked = new URL(location).searchParams;
  element.querySelectorAll('.tile').forEach(tile => {
    const on = tile.dataset.key === asked.get('sample') && tile.dataset.step === asked.get('step');
    on ? tile.setAttribute('aria-pressed', 'true') : tile.removeAttribute('aria-pressed');
  });
};
const tell = token => {
  const box = token.closest('.spelled');
  box.querySelectorAll('.at').forEach(other => other.classList.remove('at'));
  token.classList.add('at');
  box.querySelector('output').textContent = '“' + token.textContent.trim() + '” ' + token.title;
};
window.addEventListener('studio-sample', mark);
watch('value', mark);
mark();
element.addEventListener('click', event => {
  const [tile, turn, group, token] = ['.tile', '[data-page]', '[data-group]', '.tokens span[title]'].map(s => event.target.closest(s));
  if (tile) { open(tile.dataset.key, tile.dataset.step); trigger('select', {key: tile.dataset.key, step: +tile.dataset.step}); }
  if (turn) trigger('select', {page: +turn.dataset.page});
  if (group) trigger('select', {group: +group.dataset.group});
  if (token) tell(token);
});
element.addEventListener('keydown', event => {
  const tile = event.target.closest('.tile'), spelled = event.target.closest('.tokens');
  const way = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0]}[event.key];
  if (event.key === 'Escape') { open(null, null); trigger('select', {close: true}); }
  if (tile && way) {
    const [row, column] = [+tile.dataset.row + way[0], +tile.dataset.column + way[1]];
    const next = element.querySelector(`.tile[data-row="${row}"][data-column="${column}"]`);
    if (next) { next.focus(); event.preventDefault(); }
  }
  if (spelled && way && !way[0]) {
    const all = [...spelled.querySelectorAll('span[title]')], now = all.findIndex(token => token.classList.contains('at'));
    const next = all[Math.min(Math.max(now + way[1], 0), all.length - 1)];
    if (next) { tell(next); event.preventDefault(); }
  }
});
