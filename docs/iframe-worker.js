// The search runs in a worker, which browsers forbid to pages that are opened as files. There, a
// hidden frame takes its place: the script runs in it, and messages are events.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      this.ready = new Promise((resolve) => {
        this.frame.onload = () => resolve(this.run(url))
      })
      document.body.append(this.frame)
    }

    run(url) {
      const scope = this.frame.contentWindow
      scope.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }))
      scope.importScripts = async (...urls) => {
        for (const each of urls) await load(scope.document, each)
      }
      return load(scope.document, url)
    }

    async postMessage(data) {
      await this.ready
      const scope = this.frame.contentWindow
      scope.dispatchEvent(new scope.MessageEvent("message", { data }))
    }

    terminate() {
      this.frame.remove()
    }
  }

  const load = (page, url) =>
    new Promise((resolve, reject) => {
      const script = page.createElement("script")
      Object.assign(script, { src: url, onload: resolve, onerror: reject })
      page.body.append(script)
    })
}
