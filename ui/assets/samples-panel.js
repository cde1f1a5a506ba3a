// The sample at large: its slider, and the way to its other steps; see samples-grid.js.
const open = (key, step) => {
  const address = new URL(location);
  for (const [name, value] of Object.entries({sample: key, step}))
    value == null ? address.searchParams.delete(name) : address.searchParams.set(name, value);
  history.replaceState(null, '', address);
  window.dispatchEvent(new Event('studio-sample'));
};
const close = () => {
  const pressed = document.querySelector('.tile[aria-pressed]');
  open(null, null);
  trigger('select', {close: true});
  if (pressed) pressed.focus();
};
const cut = () => element.querySelectorAll('.slider').forEach(slider =>
  slider.style.setProperty('--cut', slider.querySelector('input').value + '%'));
watch('value', cut);
element.addEventListener('input', cut);
element.addEventListener('click', event => {
  const chip = event.target.closest('[data-step]');
  if (chip) { open(chip.dataset.key, chip.dataset.step); trigger('select', {key: chip.dataset.key, step: +chip.dataset.step}); }
  if (event.target.closest('[data-close]')) close();
});
element.addEventListener('keydown', event => { if (event.key === 'Escape') close(); });
