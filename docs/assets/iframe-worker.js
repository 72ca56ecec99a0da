// The search of pages that are opened as files. Browsers start no worker there; this one runs in a hidden frame, which
// hears and says the same messages. Our own, so that the site loads nothing from elsewhere.
"use strict";
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      const inner = frame.contentWindow;
      window.addEventListener("message", (event) => {
        if (event.source === inner) {
          const message = new MessageEvent("message", { data: event.data });
          this.dispatchEvent(message);
          this.onmessage?.(message);
        }
      });
      this.frame = frame;
      this.ready = new Promise((done) => (inner.workerReady = done));
      inner.document.open();
      inner.document.write(
        `<script>postMessage = (data) => parent.postMessage(data, "*");</script><script src="${url}"></script>` +
          "<script>workerReady()</script>",
      );
      inner.document.close();
    }

    postMessage(data) {
      this.ready.then(() => this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data })));
    }

    terminate() {
      this.frame.remove();
    }
  };
}
