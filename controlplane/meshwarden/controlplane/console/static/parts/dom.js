// Elements, made of names and text alone: what a tenant may name things by is never read as HTML.
//
//     h("p", { class: "note" }, "hello ", h("b", null, name))

const SVG = "http://www.w3.org/2000/svg";

/** Makes an element. Strings and numbers among the children become text; null, undefined and false are left out. */
export function h(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** Makes an element of SVG. */
export function svg(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

/** Puts children in place of those that an element has. */
export function put(element, ...children) {
  element.replaceChildren(...children.flat(Infinity).filter(isShown));
  return element;
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    set(element, name, value);
  }
  element.append(...children.flat(Infinity).filter(isShown));
  return element;
}

function isShown(child) {
  return child !== null && child !== undefined && child !== false;
}

function set(element, name, value) {
  if (value === null || value === undefined || value === false) {
    return;
  }
  if (name.startsWith("on")) {
    element.addEventListener(name.slice(2), value); // which takes functions alone
  } else if (name === "style") {
    for (const [property, text] of Object.entries(value)) {
      element.style.setProperty(property, text);
    }
  } else if (name === "href" && !/^(#|\/(?!\/))/.test(value)) {
    throw new TypeError(`a link leads within the console or to its API, not to ${value}`);
  } else {
    element.setAttribute(name, value === true ? "" : value);
  }
}
