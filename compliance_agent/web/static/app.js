// Everything a page says is in its HTML; this only adds comfort: times in the reader's zone, a theme switch, copying,
// and the honest word when a page that should keep itself fresh no longer can.
(() => {
  "use strict";

  const clock = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
  const localise = (root) => {
    for (const time of root.querySelectorAll("time[data-local]")) {
      const moment = new Date(time.dateTime);
      if (Number.isNaN(moment.getTime())) continue;
      if (!time.title) time.title = time.dataset.utc;
      if (time.dataset.local === "text") time.textContent = clock.format(moment);
      else time.title = `${clock.format(moment)} (${time.dataset.utc})`;
    }
  };

  const themes = ["auto", "light", "dark"];
  const button = document.querySelector("[data-theme-switch]");
  const showTheme = () => {
    const chosen = localStorage.getItem("theme") || "auto";
    button.textContent = { auto: "Theme: auto", light: "Theme: light", dark: "Theme: dark" }[chosen];
    if (chosen === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = chosen;
  };
  if (button) {
    button.addEventListener("click", () => {
      const chosen = localStorage.getItem("theme") || "auto";
      localStorage.setItem("theme", themes[(themes.indexOf(chosen) + 1) % themes.length]);
      showTheme();
    });
    showTheme();
  }

  document.addEventListener("click", async (event) => {
    const copy = event.target.closest("[data-copy]");
    if (!copy) return;
    await navigator.clipboard.writeText(document.getElementById(copy.dataset.copy).textContent.trim());
    copy.textContent = "Copied";
    setTimeout(() => (copy.textContent = "Copy"), 2000);
  });

  // A live page that has heard nothing for 25 seconds must not go on looking current; one that has ended is no live page any more.
  const live = () => document.querySelector("[data-live]");
  const banner = document.getElementById("stale");
  let heard = Date.now();
  const judge = () => {
    const stale = live() !== null && Date.now() - heard > 25000;
    banner.hidden = !stale;
    document.documentElement.classList.toggle("stale", stale);
    if (stale) banner.querySelector("time").textContent = clock.format(new Date(heard));
  };
  if (live() && banner) {
    document.addEventListener("htmx:after:swap", () => {
      heard = Date.now();
      localise(document);
      judge();
    });
    // Errors are not swapped in: the page keeps what it last knew and the banner says since when.
    document.addEventListener("htmx:before:swap", (event) => {
      const status = event.detail.ctx?.response?.status ?? 0;
      if (status !== 200) event.preventDefault();
    });
    // A page nobody looks at asks nothing and is told nothing; when it is looked at again it asks at once, before it is judged.
    document.addEventListener("htmx:before:request", (event) => {
      if (document.hidden) event.preventDefault();
    });
    // The server says when something changed. Where it cannot, the page asks every five seconds. A page that names no stream asks
    // by itself, as often as it says.
    let stream = null;
    const ask = () => {
      if (live()?.dataset.live) window.htmx?.trigger(live(), "refresh");
    };
    const stop = () => {
      stream?.close();
      stream = null;
    };
    const listen = () => {
      const place = live()?.dataset.live;
      if (stream || document.hidden || !place) return;
      stream = new EventSource(place);
      stream.addEventListener("change", () => {
        document.documentElement.dataset.told = String(Number(document.documentElement.dataset.told || 0) + 1);
        ask();
      });
      for (const name of ["end", "error"])
        stream.addEventListener(name, () => {
          stop();
          ask();
          setTimeout(listen, 30000);
        });
    };
    setInterval(() => {
      if (!stream || stream.readyState !== EventSource.OPEN || Date.now() - heard > 18000) ask();
    }, 5000);
    document.addEventListener("visibilitychange", () => {
      if (document.hidden) return stop();
      heard = Math.max(heard, Date.now() - 15000);
      ask();
      listen();
    });
    window.addEventListener("pagehide", stop);
    window.addEventListener("load", listen);
    setInterval(judge, 2000);
  }

  localise(document);
})();
