// Goes into the App's page: names this page in all that it asks for, and says so when a newer page took its place or
// the server refused to save.
(() => {
  const HEADER = "X-App-Page";
  const page = "__PAGE__";
  const plain = window.fetch.bind(window);
  let replaced = false;

  const say = () => {
    if (replaced) return;
    replaced = true;
    const cover = document.createElement("div");
    cover.setAttribute("role", "alertdialog");
    cover.setAttribute("data-cy", "replaced");
    cover.style.cssText =
      "position:fixed;inset:0;z-index:2147483647;background:rgba(15,17,20,.94);color:#fff;display:flex;" +
      "flex-direction:column;gap:20px;align-items:center;justify-content:center;text-align:center;padding:24px;" +
      "font:17px/1.5 system-ui,sans-serif";
    const words = document.createElement("p");
    words.style.cssText = "max-width:34em;margin:0";
    words.textContent =
      "The App was opened in another tab or browser. Two pages would undo each other's boxes, so this one saves " +
      "nothing any more. What it saved before is kept.";
    const button = document.createElement("button");
    button.style.cssText =
      "font:inherit;padding:9px 20px;border:0;border-radius:6px;background:#ff6d04;color:#fff;cursor:pointer";
    button.textContent = "Go on here instead";
    button.onclick = () => location.reload();
    cover.append(words, button);
    document.body.append(cover);
    button.focus();
  };

  // FiftyOne itself does not show that a box was not saved.
  const warn = (words) => {
    const banner = document.createElement("div");
    banner.setAttribute("role", "alert");
    banner.setAttribute("data-cy", "refused");
    banner.style.cssText =
      "position:fixed;left:50%;bottom:28px;transform:translateX(-50%);z-index:2147483646;max-width:40em;" +
      "padding:12px 20px;border-radius:6px;background:#b3261e;color:#fff;font:16px/1.4 system-ui,sans-serif";
    banner.textContent = words;
    document.querySelector("[data-cy=refused]")?.remove();
    document.body.append(banner);
    setTimeout(() => banner.remove(), 10000);
  };

  window.fetch = async (resource, options) => {
    const request = new Request(resource, options);
    if (new URL(request.url).origin !== location.origin) return plain(request);
    request.headers.set(HEADER, page);
    const answer = await plain(request);
    const word = answer.headers.get(HEADER);
    if (word === "replaced") say();
    if (word === "refused") warn((await answer.clone().json()).message);
    return answer;
  };

  const look = async () => {
    if (document.hidden || replaced) return;
    try {
      const answer = await plain("/page", { headers: { [HEADER]: page } });
      if (answer.headers.get(HEADER) === "replaced") say();
    } catch {
      // the App was stopped: its own page says so
    }
  };
  window.addEventListener("focus", look);
  document.addEventListener("visibilitychange", look);
  setInterval(look, 10000);
})();
