// Everything that the page, the widget and the tests take from the one module.
export { Store } from "./model/store.js";
