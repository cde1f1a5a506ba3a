// What pages do in the browser: crosshair and values of charts, their data as CSV, sections that stay as they were left,
// the filter of a recipe, logs that follow. Events are heard on the document, as parts of pages are replaced while they are open.
(() => {
  const parsed = new WeakMap();
  const read = (element, name) => {
    const raw = element.dataset[name], known = parsed.get(element);
    if (known && known.raw === raw) return known.value;
    const value = JSON.parse(raw);
    parsed.set(element, {raw, value});
    return value;
  };
  const SVG = 'http://www.w3.org/2000/svg';
  const draw = (parent, name, attributes) => {
    const shape = document.createElementNS(SVG, name);
    for (const key in attributes) shape.setAttribute(key, attributes[key]);
    parent.append(shape);
  };
  const told = value => value === null || value === undefined ? '–' : String(+value.toPrecision(5)).replace('-', '\u2212');

  // --- values under the pointer -------------------------------------------------------------------------------------
  const tip = document.createElement('div');
  tip.className = 'tip';
  tip.setAttribute('role', 'status');
  tip.hidden = true;
  let at = null;  // {svg, x} of a chart or {svg, column, row} of a map, where the crosshair is

  const nearest = (sorted, x) => {
    let low = 0, high = sorted.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (sorted[middle] < x) low = middle + 1; else high = middle;
    }
    return low > 0 && x - sorted[low - 1] <= sorted[low] - x ? low - 1 : low;
  };
  const geometry = svg => {
    const [left, top, right, bottom] = svg.dataset.frame.split(' ').map(Number);
    const [x0, y0, x1, y1] = svg.dataset.bounds.split(' ').map(Number);
    return {
      left, top, right, bottom, x0, x1,
      x: value => left + (right - left) * (value - x0) / (x1 - x0),
      y: value => bottom - (bottom - top) * (value - y0) / (y1 - y0),
      back: px => x0 + (px - left) / (right - left) * (x1 - x0),
    };
  };
  const series = svg => read(svg.closest('[data-series]'), 'series').filter(line => line.x.length);
  const front = line => line.sx ? {x: line.sx, y: line.sy} : {x: line.x, y: line.y};  // what is drawn, with or without smoothing
  const steps = svg => [...new Set(series(svg).flatMap(line => front(line).x))].sort((a, b) => a - b);

  const clear = () => document.querySelectorAll('g.cross').forEach(group => group.replaceChildren());
  const hide = () => { at = null; tip.hidden = true; clear(); };
  const row = (line, text, note) => {
    const item = document.createElement('div'), name = document.createElement('span'), value = document.createElement('b');
    if (line) item.style.setProperty('--color', `var(--line-${line.i + 1})`);
    name.textContent = line ? line.n : '';
    value.textContent = text;
    item.append(name, value);
    if (note) item.append(Object.assign(document.createElement('small'), {textContent: note}));
    return item;
  };

  function show(polite) {
    if (!at || !at.svg.isConnected) return hide();
    tip.setAttribute('aria-live', polite ? 'polite' : 'off');
    clear();
    const box = at.svg.getBoundingClientRect();
    const [x, y] = at.svg.classList.contains('cells') ? showCell(at.svg, box) : showStep(at.svg, box);
    tip.hidden = false;
    const wide = tip.offsetWidth, tall = tip.offsetHeight;
    tip.style.left = `${Math.max(4, x + 16 + wide > innerWidth - 4 ? x - 16 - wide : x + 16)}px`;
    tip.style.top = `${Math.max(4, Math.min(y - tall / 2, innerHeight - tall - 4))}px`;
  }

  function showStep(svg, box) {
    const lines = series(svg), step = at.x, place = geometry(svg), group = svg.querySelector('g.cross');
    const title = Object.assign(document.createElement('h5'), {textContent: `step ${step}`});
    const rows = lines.map(line => {
      const {x, y} = front(line), k = nearest(x, step), m = nearest(line.x, step);
      draw(group, 'circle', {cx: place.x(x[k]), cy: place.y(line.h ? line.h[k] : y[k]), r: 3.4, style: `fill:var(--line-${line.i + 1})`});
      const notes = [];
      if (line.sx && line.x[m] === step) notes.push(`measured ${told(line.y[m])}`);
      if (x[k] !== step) notes.push(`at step ${x[k]}`);
      return row(line, told(y[k]), notes.join(', '));
    });
    tip.replaceChildren(title, ...rows);
    document.querySelectorAll('svg.plot[data-frame]').forEach(other => {  // the same step everywhere
      const its = geometry(other);
      if (step < its.x0 || step > its.x1) return;
      const x = its.x(step);
      draw(other.querySelector('g.cross'), 'path', {d: `M${x} ${its.top}V${its.bottom}`});
    });
    const view = svg.viewBox.baseVal;
    return [box.left + place.x(step) / view.width * box.width, at.y ?? box.top + box.height / 2];
  }

  function showCell(svg, box) {
    const map = read(svg, 'heat'), columns = map.x.length, count = map.t.length;
    at.column = Math.max(0, Math.min(columns - 1, at.column));
    at.row = Math.max(0, Math.min(count - 1, at.row));
    const [first, last] = map.x[at.column];
    draw(svg.querySelector('g.cross'), 'rect', {x: at.column, y: at.row, width: 1, height: 1});
    tip.replaceChildren(
      Object.assign(document.createElement('h5'), {textContent: `${first === last ? `step ${first}` : `steps ${first} to ${last}`}, t = ${map.t[at.row]}`}),
      row(null, told(map.v[at.row][at.column])));
    return [box.left + (at.column + 0.5) / columns * box.width, box.top + (at.row + 0.5) / count * box.height];
  }

  function point(event) {
    const svg = event.target.closest?.('svg.plot[data-frame], svg.cells');
    if (!svg) { if (at && !tip.hidden && at.pointer) hide(); return; }
    const box = svg.getBoundingClientRect();
    if (svg.classList.contains('cells')) {
      const map = read(svg, 'heat');
      at = {svg, pointer: true, column: Math.floor((event.clientX - box.left) / box.width * map.x.length),
        row: Math.floor((event.clientY - box.top) / box.height * map.t.length)};
    } else {
      const known = steps(svg), px = (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
      if (!known.length) return;
      at = {svg, pointer: true, x: known[nearest(known, geometry(svg).back(px))], y: event.clientY};
    }
    show(false);
  }

  function key(event) {
    const svg = event.target.closest?.('svg.plot[data-frame], svg.cells');
    const move = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1], Home: [-1e9, 0], End: [1e9, 0]}[event.key];
    if (event.key === 'Escape') return hide();
    if (!svg || !move) return;
    const cells = svg.classList.contains('cells');
    if (!cells && move[1]) return;
    event.preventDefault();
    const here = at && at.svg === svg ? at : null, far = event.shiftKey ? 10 : 1;
    if (cells) {
      at = {svg, column: here ? here.column + far * move[0] : 0, row: here ? here.row + far * move[1] : 0};
    } else {
      const known = steps(svg), from = here ? nearest(known, here.x) : move[0] < 0 ? known.length : -1;  // enter at the near end
      at = {svg, x: known[Math.max(0, Math.min(known.length - 1, from + far * move[0]))]};
    }
    show(true);
  }

  // --- the data of a picture as CSV ---------------------------------------------------------------------------------
  const field = value => {
    const text = value === null || value === undefined ? '' : String(value);
    const safe = typeof value === 'string' && /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;  // no formula for a spreadsheet
    return /[",\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  function table(figure) {
    if (!figure.dataset.series) {
      const rows = [['run', 'first_step', 'last_step', 't', 'value']];
      figure.querySelectorAll('svg.cells').forEach(svg => {
        const map = read(svg, 'heat');
        map.v.forEach((line, k) => line.forEach((value, c) => rows.push([map.n, ...map.x[c], map.t[k], value])));
      });
      return rows;
    }
    const columns = read(figure, 'series').flatMap(line => [
      {name: line.n, at: new Map(line.x.map((x, k) => [x, line.y[k]]))},
      ...(line.sx ? [{name: `${line.n} (smoothed)`, at: new Map(line.sx.map((x, k) => [x, line.sy[k]]))}] : []),
    ]);
    const all = [...new Set(columns.flatMap(column => [...column.at.keys()]))].sort((a, b) => a - b);
    return [['step', ...columns.map(column => column.name)], ...all.map(step => [step, ...columns.map(column => column.at.get(step))])];
  }
  function save(button) {
    const text = table(button.closest('figure')).map(line => line.map(field).join(',')).join('\n');
    const run = new URLSearchParams(location.search).get('run') || 'run';
    const link = document.createElement('a');
    link.href = URL.createObjectURL(new Blob([`${text}\n`], {type: 'text/csv'}));
    link.download = `${run}_${button.dataset.csv}.csv`.replaceAll(/[^\w.@-]+/g, '-');
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  // --- what a person has opened, filtered or scrolled stays, whatever arrives -------------------------------------------
  const FOLDS = 'studio-folds';
  let folds = {};
  try { folds = JSON.parse(localStorage.getItem(FOLDS)) || {}; } catch { /* private mode: known for this page only */ }
  const keep = (details, open) => {
    folds[details.dataset.fold] = open;
    try { localStorage.setItem(FOLDS, JSON.stringify(folds)); } catch { /* as above */ }
  };
  const filter = input => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    const lines = [...input.closest('.code').querySelectorAll('[data-path]')];
    const paths = new Set();
    lines.forEach(line => {
      const text = `${line.dataset.path} ${line.textContent}`.toLowerCase();
      line.hidden = !words.every(word => text.includes(word));
      if (!line.hidden) line.dataset.path.split('.').forEach((_, k, all) => paths.add(all.slice(0, k).join('.')));
    });
    lines.forEach(line => { if (paths.has(line.dataset.path)) line.hidden = false; });
  };
  const followed = new WeakMap();  // log -> whether it was left at its end
  function settle() {
    document.querySelectorAll('details[data-fold]').forEach(details => {
      const open = folds[details.dataset.fold];
      if (open !== undefined && details.open !== open) details.open = open;
    });
    document.querySelectorAll('input[data-filter]').forEach(input => { if (input.value) filter(input); });
    document.querySelectorAll('pre[data-follow]').forEach(log => {
      if (followed.get(log) !== false) log.scrollTop = log.scrollHeight;
    });
    if (at) show(false);
  }

  document.addEventListener('pointermove', point, {passive: true});
  document.addEventListener('pointerdown', point, {passive: true});
  document.addEventListener('keydown', key);
  document.addEventListener('focusout', event => { if (event.target.matches?.('svg.plot, svg.cells')) hide(); });
  document.addEventListener('scroll', event => {
    if (event.target.dataset?.follow !== undefined) {
      const log = event.target;
      followed.set(log, log.scrollTop + log.clientHeight >= log.scrollHeight - 8);
    } else if (at && at.pointer) hide();
  }, {capture: true, passive: true});
  document.addEventListener('input', event => { if (event.target.matches?.('input[data-filter]')) filter(event.target); });
  document.addEventListener('click', event => {
    const button = event.target.closest?.('button[data-csv]');
    if (button) return save(button);
    const summary = event.target.closest?.('summary');
    if (summary?.parentElement.dataset.fold) keep(summary.parentElement, !summary.parentElement.open);
    const link = event.target.closest?.('a[href^="#section-"]');
    const goal = link && document.getElementById(link.getAttribute('href').slice(1));
    if (goal) {
      event.preventDefault();
      keep(goal, true);
      goal.open = true;
      goal.scrollIntoView({behavior: 'smooth'});
    }
  });
  const begin = () => {
    document.body.append(tip);
    new MutationObserver(changes => { if (changes.some(change => !ours(change.target))) settle(); })
      .observe(document.body, {subtree: true, childList: true, attributes: true, attributeFilter: ['open', 'data-series', 'data-heat']});
  };
  const ours = node => tip.contains(node) || node.classList?.contains('cross');
  document.body ? begin() : document.addEventListener('DOMContentLoaded', begin);

  // --- the page's address ---------------------------------------------------------------------------------------------
  window.studio = {
    address(query) {  // what is shown, so that it can be shared, reloaded and taken along to other pages
      const set = (url, names) => {
        for (const name of names) query[name] || query[name] === 0 ? url.searchParams.set(name, query[name]) : url.searchParams.delete(name);
        return url;
      };
      history.replaceState(history.state, '', set(new URL(location.href), Object.keys(query)));
      document.querySelectorAll('.studio-header nav a').forEach(link => { link.href = set(new URL(link.href), ['run']).href; });
    },
  };
})();
