// A page's sounds are text in script elements (parts.html.j2); they become audio when they are wanted.
const sounds = (() => {
  const addresses = new Map();

  function address(key) {
    if (!addresses.has(key)) {
      const holder = document.getElementById(`sound-${key}`);
      const bytes = Uint8Array.from(atob(holder.textContent.trim()), (letter) => letter.charCodeAt(0));
      addresses.set(key, URL.createObjectURL(new Blob([bytes], { type: holder.dataset.kind })));
    }
    return addresses.get(key);
  }

  // Gives the audio and image elements below `root` what they hold.
  function ready(root) {
    for (const audio of root.querySelectorAll("audio[data-sound]:not([src])")) audio.src = address(audio.dataset.sound);
    for (const image of root.querySelectorAll("img[data-picture]:not([src])")) image.src = image.dataset.picture;
  }

  // A sound that is stopped before it began is no error.
  function play(audio) {
    audio.play().catch((error) => { if (error.name !== "AbortError") throw error; });
  }

  // One sound at a time.
  document.addEventListener("play", (event) => {
    for (const other of document.querySelectorAll("audio")) if (other !== event.target) other.pause();
  }, true);

  return { address, play, ready };
})();
