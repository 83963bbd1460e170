// Everything that the page, the widget and the tests take from the one module.

import "../styles/explorer.css";
import { startOnPage } from "./page.js";
import { render } from "./widget.js";

export { Explorer, mount } from "./explorer.js";
export { Store } from "./model/store.js";
export { indexMap } from "./model/indexmap.js";
export { problems, complete } from "./model/geometry.js";
export { PRESETS, stateOf } from "./model/presets.js";
export { code, LANGUAGES } from "./model/code.js";
export { toAddress, fromAddress } from "./model/address.js";

// For anywidget, which warns of a `render` that is exported by its own name.
export default { render };

startOnPage();
