import { render } from "preact";
import { access } from "./access.js";
import { App } from "./app.js";

const root = document.getElementById("app")!;
root.replaceChildren();
render(<App />, root);
void access.start();
