// Videos play while in view, with their controls below the picture rather than over the score.
const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
for (const video of document.querySelectorAll("video")) {
  video.removeAttribute("controls");
  const bar = document.createElement("div");
  bar.className = "player";
  bar.innerHTML = '<button type="button" aria-label="Play or pause"></button>' +
    '<input type="range" min="0" max="1" step="any" value="0" aria-label="Position">';
  video.after(bar);
  const [button, range] = bar.children;
  let wanted = !still;
  const show = () => { button.textContent = video.paused ? "▶" : "❚❚"; };
  const step = (frames) => {
    wanted = false; video.pause();
    const last = Math.max(0, (video.duration || 0) - 0.5 / video.dataset.fps);
    video.currentTime = Math.min(last, Math.max(0, video.currentTime + frames / video.dataset.fps));
  };
  const toggle = () => { wanted = video.paused; wanted ? video.play() : video.pause(); };
  button.onclick = video.onclick = toggle;
  video.onplay = video.onpause = show;
  video.ontimeupdate = () => { range.value = video.currentTime / (video.duration || 1); };
  range.oninput = () => { wanted = false; video.pause(); video.currentTime = range.value * video.duration; };
  video.tabIndex = 0;
  video.closest("figure").addEventListener("keydown", (event) => {
    const keys = { ArrowLeft: () => step(-1), ArrowRight: () => step(1), " ": toggle };
    if (!keys[event.key] || (event.key === " " && event.target === button)) return;
    event.preventDefault();
    keys[event.key]();
  });
  new IntersectionObserver(([entry]) => {
    if (entry.isIntersecting && wanted) video.play().catch(() => {});
    else video.pause();
  }, { threshold: 0.25 }).observe(video);
  show();
}
// The list of episodes: filters, and links that set them.
const list = document.getElementById("every-episode");
if (list) {
  const selects = [...list.querySelectorAll("select")], rows = [...list.querySelectorAll("tbody tr")];
  const apply = () => {
    let shown = 0;
    for (const row of rows) {
      row.hidden = !selects.every((s) => !s.value || row.dataset[s.name] === s.value);
      shown += !row.hidden;
    }
    list.querySelector("output").textContent = `${shown} of ${rows.length} episodes`;
  };
  for (const select of selects) select.onchange = apply;
  for (const link of document.querySelectorAll("a[data-pick]")) {
    link.onclick = () => {
      const pick = new URLSearchParams(link.dataset.pick);
      for (const select of selects) {
        const value = pick.get(select.name) ?? "";
        if (![...select.options].some((o) => o.value === value)) select.add(new Option(value));
        select.value = value;
      }
      apply();
    };
  }
  apply();
}
document.getElementById("theme").onclick = () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
};
