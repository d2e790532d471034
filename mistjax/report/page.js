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
  const toggle = () => { wanted = video.paused; wanted ? video.play() : video.pause(); };
  button.onclick = video.onclick = toggle;
  video.onplay = video.onpause = show;
  video.ontimeupdate = () => { range.value = video.currentTime / (video.duration || 1); };
  range.oninput = () => { wanted = false; video.pause(); video.currentTime = range.value * video.duration; };
  new IntersectionObserver(([entry]) => {
    if (entry.isIntersecting && wanted) video.play().catch(() => {});
    else video.pause();
  }, { threshold: 0.25 }).observe(video);
  show();
}
document.getElementById("theme").onclick = () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
};
