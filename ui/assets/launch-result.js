// Copies the command line; an answer to an older question stays marked as such.
element.addEventListener('click', async event => {
  const button = event.target.closest('[data-copy]');
  if (!button) return;
  const command = element.querySelector('[data-command]');
  try {
    await navigator.clipboard.writeText(command.textContent);
    button.textContent = 'Copied';
  } catch {
    getSelection().selectAllChildren(command);
    button.textContent = 'Selected: press Ctrl+C';
  }
  setTimeout(() => { button.textContent = 'Copy'; }, 2000);
});
watch('value', () => {
  const part = element.querySelector('.result');
  if (!part) return;
  part.toggleAttribute('aria-busy', false);
  if (Number(part.dataset.serial) < (window.studioLaunch?.serial ?? 0)) part.setAttribute('aria-busy', 'true');
});
