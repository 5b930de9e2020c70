// Replace static figures by interactive ones as they come into view; without this script the page is complete.
(async () => {
  const places = [...document.querySelectorAll("[data-figure]")];
  if (!("DecompressionStream" in window) || !("IntersectionObserver" in window)) return;
  const unpacked = (id) => {
    const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), (char) => char.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip")));
  };
  const { config, specs } = await unpacked("specifications").json();
  const script = document.createElement("script");
  script.textContent = await unpacked("library").text();
  document.head.append(script);
  const options = {
    config, renderer: "svg", defaultStyle: false, logLevel: 1, scaleFactor: 2, ast: true, // expressions are interpreted: nothing is evaluated
    actions: { export: true, source: false, compiled: false, editor: false },
  };
  const draw = async (place) => {
    const fresh = document.createElement("div");
    fresh.style.cssText = "position:absolute;visibility:hidden";
    place.append(fresh);
    try {
      await vegaEmbed(fresh, specs[place.dataset.figure], { ...options, downloadFileName: place.dataset.figure });
      const svg = fresh.querySelector("svg");
      for (const part of fresh.querySelectorAll("[role]")) { // of every group of marks, without a name
        part.removeAttribute("role");
        part.removeAttribute("aria-roledescription");
      }
      svg.setAttribute("role", "img");
      svg.setAttribute("aria-label", place.getAttribute("aria-label"));
      fresh.style.cssText = "";
      for (const other of [...place.children]) if (other !== fresh) other.remove();
      place.dataset.drawn = "interactive";
    } catch (error) {
      fresh.remove(); // the static figure stays
      console.warn(`figure ${place.dataset.figure} stays static: ${error.message}`);
    }
  };
  const seen = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      seen.unobserve(target);
      draw(target);
    }
  }, { rootMargin: "600px" });
  for (const place of places) seen.observe(place);
})().catch((error) => console.warn(`figures stay static: ${error.message}`));
