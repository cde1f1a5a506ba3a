// The form of the page Launch: what was changed is kept here and told to the page; see ui/form.py and ui/edit.py.
const launch = window.studioLaunch = {changes: {}, structure: {}, text: null, serial: 0, problems: {}, open: {}};
const WAIT = 450; // ms after the last key
const PATIENCE = 130000; // ms until an answer is given up
const all = selector => [...element.querySelectorAll(selector)];
const one = selector => element.querySelector(selector);
const named = (mark, path) => one(`[${mark}="${CSS.escape(path)}"]`);
const read = control => control.type === 'checkbox' ? String(control.checked) : control.value;
const put = (control, text) => { if (control.type === 'checkbox') control.checked = text === 'true'; else if (control.value !== text) control.value = text; };
const card = name => document.querySelector(`.start [name=${name}]`)?.value ?? '';

// Everything that the server needs to know; it keeps nothing between events.
launch.all = () => structuredClone({
  changes: launch.changes, structure: launch.structure, text: launch.text, serial: launch.serial,
  name: card('name'), processes: card('processes'), gpus: card('gpus'),
});

// One question of a kind at a time; what has changed meanwhile is asked once its answer is there.
const line = event => {
  let asked = 0, due = false, key = null, late = null;
  const ask = () => {
    if (asked || !due) return;
    [asked, due] = [launch.serial, false];
    trigger(event, launch.all());
    late = setTimeout(() => answered(asked), PATIENCE);
  };
  const answered = serial => {
    if (serial !== asked) return;
    clearTimeout(late);
    asked = 0;
    ask();
  };
  const tell = wait => {
    launch.serial += 1;
    due = true;
    clearTimeout(key);
    key = setTimeout(ask, wait);
  };
  return {tell, answered};
};
const edits = line('edit'), swaps = line('swap');
launch.tell = wait => {
  document.querySelectorAll('.check, .result').forEach(part => part.setAttribute('aria-busy', 'true'));
  edits.tell(wait);
};
launch.answered = edits.answered;

// After a check: every problem beside its field, or beside the block around it.
launch.mark = problems => {
  launch.problems = problems;
  all('[data-problem]').forEach(place => { place.textContent = ''; });
  all('[aria-invalid]').forEach(control => control.removeAttribute('aria-invalid'));
  for (const [path, text] of Object.entries(problems)) {
    let at = path;
    while (at && !named('data-problem', at)) at = at.slice(0, Math.max(0, at.lastIndexOf('.')));
    const place = at && named('data-problem', at);
    if (!place) continue;
    place.textContent = text;
    (named('data-path', path) || named('data-swap', at))?.setAttribute('aria-invalid', 'true');
    for (let fold = place.closest('details'); fold; fold = fold.parentElement.closest('details')) fold.open = true;
  }
};

const count = () => {
  const many = Object.keys(launch.changes).length + Object.keys(launch.structure).length;
  const reset = one('[data-reset-all]');
  if (reset) { reset.disabled = !many; reset.textContent = many ? `Reset ${many} change${many > 1 ? 's' : ''}` : 'Reset all'; }
  all('details[data-block]').forEach(fold => {
    const path = fold.dataset.block;
    const inside = fold.querySelector('.field.changed') || Object.keys(launch.structure).some(key => key === path || key.startsWith(path + '.'));
    fold.classList.toggle('touched', Boolean(inside));
  });
};

const keep = control => {
  const path = control.dataset.path;
  const same = read(control) === control.dataset.value;
  if (same) delete launch.changes[path]; else launch.changes[path] = read(control);
  control.closest('.field').classList.toggle('changed', !same);
};

const filter = () => {
  const words = (one('[data-find]')?.value || '').toLowerCase().split(/\s+/).filter(Boolean);
  const only = one('[data-changed-only]')?.checked;
  const busy = words.length > 0 || only;
  let any = false;
  all('.field[data-field]').forEach(field => {
    const text = (field.dataset.field + ' ' + field.textContent).toLowerCase();
    field.hidden = !(words.every(word => text.includes(word)) && (!only || field.classList.contains('changed')));
    any ||= !field.hidden;
  });
  one('.recipe-form')?.classList.toggle('filtering', busy);
  all('details[data-block]').forEach(fold => {
    const some = [...fold.querySelectorAll('.field[data-field]')].some(field => !field.hidden);
    fold.hidden = busy && !some;
    const normal = launch.open[fold.dataset.block] ?? fold.dataset.start === 'open';
    fold.open = busy ? some : normal;
  });
  const none = one('[data-none]');
  if (none) none.hidden = !busy || any;
};

const showText = text => {
  launch.text = text;
  const form = one('.recipe-form');
  form.querySelector('.as-text')?.remove();
  form.classList.toggle('text', text !== null);
  if (text === null) return;
  const part = document.createElement('div');
  part.className = 'as-text';
  const area = document.createElement('textarea');
  area.className = 'yaml';
  area.rows = Math.max(18, text.split('\n').length + 2);
  area.spellcheck = false;
  area.setAttribute('aria-label', 'Recipe as YAML');
  area.value = text;
  area.addEventListener('input', () => { launch.text = area.value; launch.tell(WAIT); });
  if (form.dataset.textOnly === undefined) {
    const back = document.createElement('button');
    back.type = 'button';
    back.textContent = 'Back to the form, without these edits';
    back.addEventListener('click', () => { showText(null); launch.tell(0); });
    part.append(back);
  }
  part.append(area);
  form.append(part);
};

const restore = () => {
  element.removeAttribute('aria-busy');
  const form = one('.recipe-form');
  if (!form) return;
  if (form.dataset.textOnly !== undefined) {
    if (launch.text === null) { showText(JSON.parse(form.dataset.textOnly)); launch.tell(0); }
    return;
  }
  if (form.dataset.refused !== undefined) launch.structure = {};
  all('[data-path]').forEach(control => {
    const path = control.dataset.path;
    put(control, path in launch.changes ? launch.changes[path] : control.dataset.value);
    keep(control);
  });
  all('[data-swap]').forEach(control => put(control, control.dataset.value));
  all('[data-add]').forEach(control => put(control, ''));
  if (launch.text !== null) showText(launch.text);
  filter();
  count();
  launch.mark(launch.problems);
  if (form.dataset.serial === '0') return; // the form as the recipe has it
  launch.tell(0);
  swaps.answered(Number(form.dataset.serial));
};

const forget = path => {
  for (const key of Object.keys(launch.changes)) if (key.startsWith(path + '.')) delete launch.changes[key];
};
const restructure = () => { element.setAttribute('aria-busy', 'true'); count(); swaps.tell(0); };

element.addEventListener('input', event => {
  const control = event.target;
  if (control.matches('[data-find], [data-changed-only]')) return filter();
  if (!control.dataset.path) return;
  keep(control);
  count();
  launch.tell(WAIT);
});
element.addEventListener('change', event => {
  const {swap, add, before} = event.target.dataset;
  const value = event.target.value;
  if (swap !== undefined) {
    forget(swap);
    if (value === before) delete launch.structure[swap]; else launch.structure[swap] = value || 'null';
    restructure();
  } else if (add !== undefined && value) {
    const path = `${add}.${value}`;
    if (path in launch.structure) delete launch.structure[path]; else launch.structure[path] = '{weight: 1.0}';
    launch.open[path] = true;
    restructure();
  }
});
element.addEventListener('click', event => {
  const button = event.target.closest('button');
  if (!button) return;
  const {reset, remove} = button.dataset;
  if (reset !== undefined) {
    const control = named('data-path', reset);
    put(control, control.dataset.value);
    keep(control);
    count();
    launch.tell(0);
  } else if (remove !== undefined) {
    forget(remove);
    if (button.dataset.own === undefined) delete launch.structure[remove]; else launch.structure[remove] = null;
    restructure();
  } else if (button.matches('[data-reset-all]')) {
    launch.changes = {};
    const blocks = Object.keys(launch.structure).length;
    launch.structure = {};
    if (blocks) restructure(); else { restore(); launch.tell(0); }
  } else if (button.matches('[data-as-text]')) {
    showText(document.querySelector('[data-yaml]')?.textContent ?? '');
    launch.tell(0);
  }
});
element.addEventListener('toggle', event => {
  const fold = event.target;
  if (fold.dataset.block && !one('.recipe-form')?.classList.contains('filtering')) launch.open[fold.dataset.block] = fold.open;
}, true);
element.addEventListener('submit', event => event.preventDefault());
watch('value', restore);
restore();
