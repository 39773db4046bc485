"use strict";
// Clips side by side: one button and one slider move all of them; without this script each has controls of its own.
for (const clip of document.querySelectorAll(".clip")) {
  const videos = [...clip.querySelectorAll("video")], leader = videos[0];
  const play = clip.querySelector(".play"), slider = clip.querySelector("input");
  if (!leader) continue;
  const measured = Number(clip.dataset.time);
  const seek = (time) => { for (const v of videos) v.currentTime = time; };
  const show = () => { slider.value = leader.currentTime / (leader.duration || 1); };
  const state = (playing) => { play.textContent = playing ? "Pause" : "Play"; clip.classList.toggle("playing", playing); };
  const follow = () => {
    if (leader.paused) return;
    for (const v of videos) if (Math.abs(v.currentTime - leader.currentTime) > 0.06) v.currentTime = leader.currentTime;
    show();
    requestAnimationFrame(follow);
  };
  const start = () => Promise.all(videos.map((v) => v.play())).then(() => { state(true); follow(); }, () => state(false));
  const stop = () => { for (const v of videos) v.pause(); seek(leader.currentTime); state(false); };
  play.onclick = () => (leader.paused ? start() : stop());
  leader.onended = () => { seek(0); start(); };
  slider.oninput = () => { if (!leader.paused) stop(); seek(slider.value * (leader.duration || 0)); };
  clip.querySelector(".measured").onclick = () => { if (!leader.paused) stop(); seek(measured); };
  leader.onseeked = () => { if (leader.paused) show(); };
  for (const v of videos) {
    v.controls = false;
    const refused = () => { clip.querySelector(".unplayable").hidden = !v.error; };
    v.onerror = refused;
    refused();
    v.readyState ? (v.currentTime = measured) : (v.onloadedmetadata = () => { v.currentTime = measured; });
  }
  clip.querySelector(".player").hidden = false;
}

// Attention: the maps of all places lie in one picture, of which the picked place's is shown.
for (const part of document.querySelectorAll(".attention")) {
  const grid = Number(part.dataset.grid), pick = part.querySelector(".pick"), mark = part.querySelector(".mark");
  let x = 0, y = 0;
  const at = (toX, toY) => {
    [x, y] = [toX, toY].map((v) => Math.min(grid - 1, Math.max(0, v)));
    mark.style.left = `${(100 * (x + 0.5)) / grid}%`;
    mark.style.top = `${(100 * (y + 0.5)) / grid}%`;
    for (const map of part.querySelectorAll(".map")) {
      const caption = map.parentElement.querySelector("figcaption"), number = y * grid + x;
      map.style.backgroundPosition = `${(100 * x) / (grid - 1)}% ${(100 * y) / (grid - 1)}%`;
      caption.querySelector(".entropy").textContent = map.dataset.entropies.split(" ")[number];
      caption.querySelector(".bar span:last-child").textContent = `${Number((100 * map.dataset.ends.split(" ")[number]).toPrecision(2))} %`;
    }
    part.querySelector("output").textContent = `(column ${x + 1}, line ${y + 1} of ${grid})`;
  };
  pick.onclick = (event) => {
    const box = pick.getBoundingClientRect();
    at(Math.floor(((event.clientX - box.left) / box.width) * grid), Math.floor(((event.clientY - box.top) / box.height) * grid));
  };
  pick.onkeydown = (event) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    at(x + step[0], y + step[1]);
  };
  const buttons = [...part.querySelectorAll("button")];
  for (const button of buttons) {
    button.onclick = () => at(Math.floor(button.dataset.x * grid), Math.floor(button.dataset.y * grid));
  }
  buttons[0].click();
}
