// Lays graphs out and draws them beside the page, so that no frame of it waits.

import { layout } from "./layout.js";
import { Painter } from "./paint.js";

let painter = null;

onmessage = ({ data: { surface, colours, number, graph, news } }) => {
  if (surface) painter = new Painter(surface);
  if (colours) painter.take({ colours });
  if (news) painter.take(news);
  if (graph) {
    const made = layout(graph);
    painter.take({ places: made.places, boxes: made.boxes });
    postMessage({ number, made: { places: made.places, width: made.width, height: made.height } });
  }
};
