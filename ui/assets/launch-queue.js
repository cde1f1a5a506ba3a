// The buttons of an entry; see ui/waiting.py.
element.addEventListener('click', event => {
  const button = event.target.closest('[data-act]');
  if (button) trigger('select', {act: button.dataset.act, id: button.closest('[data-entry]').dataset.entry});
});
let open = false; // the runs that are done
element.addEventListener('toggle', event => { open = event.target.open; }, true);
watch('value', () => { const fold = element.querySelector('details'); if (fold) fold.open = open; });
