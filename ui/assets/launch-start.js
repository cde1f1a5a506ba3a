// Name, processes, GPUs and the two buttons; see ui/desk.py.
const typed = {name: '', processes: '1', gpus: ''};
element.addEventListener('input', event => {
  typed[event.target.name] = event.target.value;
  window.studioLaunch.tell(450);
});
element.addEventListener('click', event => {
  const button = event.target.closest('[data-start]');
  if (!button) return;
  element.querySelectorAll('button').forEach(other => { other.disabled = true; });
  button.textContent = button.dataset.start === 'now' ? 'Starting …' : 'Adding …';
  const serial = Date.now(); // so that the same answer twice is still news
  trigger('submit', {...window.studioLaunch.all(), serial, waits: button.dataset.start === 'queue'});
});
watch('value', () => {
  const card = element.querySelector('.start');
  if (!card) return;
  if (card.dataset.kept === '0' && card.dataset.serial !== '0') typed.name = '';
  for (const [name, text] of Object.entries(typed)) {
    const control = element.querySelector(`[name=${name}]`);
    if (control) control.value = text;
  }
  element.querySelectorAll('button').forEach(button => {
    button.disabled = false;
    button.textContent = button.dataset.start === 'now' ? 'Start now' : 'Add to queue';
  });
});
