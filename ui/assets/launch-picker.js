// Above the form: filter over the list of recipes, ways to parts of the page; see ui/recipes.py and ui/desk.py.
const filter = () => {
  const words = (element.querySelector('[data-find]')?.value || '').toLowerCase().split(/\s+/).filter(Boolean);
  let any = false;
  element.querySelectorAll('section').forEach(section => {
    let some = false;
    section.querySelectorAll('[data-words]').forEach(row => {
      row.hidden = !words.every(word => row.dataset.words.includes(word));
      some ||= !row.hidden;
    });
    section.hidden = !some;
    any ||= some;
  });
  const none = element.querySelector('[data-none]');
  if (none) none.hidden = any;
};
element.addEventListener('input', filter);
element.addEventListener('change', event => {
  if (event.target.matches('[data-from]') && event.target.value)
    window.location.assign('./launch?from=' + encodeURIComponent(event.target.value));
});
element.addEventListener('click', event => { // within the page: its address names the recipe
  const target = event.target.closest('[data-jump], [data-to-start]');
  if (!target) return;
  event.preventDefault();
  document.getElementById(target.dataset.jump || 'start')?.scrollIntoView({block: 'start'});
});
