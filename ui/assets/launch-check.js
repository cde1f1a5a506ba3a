// Hands the problems that the check found to the form; an answer to an older question stays marked as such.
watch('value', () => {
  const panel = element.querySelector('.check');
  if (!panel || panel.dataset.serial === undefined) return;
  const launch = window.studioLaunch;
  panel.removeAttribute('aria-busy');
  if (Number(panel.dataset.serial) < (launch?.serial ?? 0)) panel.setAttribute('aria-busy', 'true');
  launch?.mark(JSON.parse(panel.dataset.problems || '{}'));
  launch?.answered(Number(panel.dataset.serial));
});
element.addEventListener('click', event => {
  const path = event.target.dataset.jump;
  if (!path) return;
  event.preventDefault();
  const control = document.getElementById(`f-${path}`);
  (control || document.querySelector(`[data-block="${CSS.escape(path)}"]`))?.scrollIntoView({block: 'center'});
  control?.focus({preventScroll: true});
});
