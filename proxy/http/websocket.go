package http

import (
	"crypto/rand"
	"crypto/sha1"
	"encoding/base64"
	"errors"

	"github.com/remotegpu/sluice/proxy/http/field"
)

// websocketAsk is an extended CONNECT (RFC 8441, RFC 9220) on its way to a backend
// that is asked by HTTP/1.1 (RFC 6455), whose client's part falls to the node: the
// key, and the check of what the backend makes of it.
type websocketAsk struct {
	asked bool
	key   string
}

func (w *websocketAsk) reset() { w.asked, w.key = false, "" }

// ask makes x, a CONNECT for protocol, the request of HTTP/1.1 that asks for the
// same. Protocols other than WebSocket stay a CONNECT, which is refused.
func (w *websocketAsk) ask(x *exchange, protocol string) {
	if !field.EqualFold(protocol, "websocket") {
		return
	}
	var nonce [16]byte
	rand.Read(nonce[:])
	w.asked, w.key = true, base64.StdEncoding.EncodeToString(nonce[:])
	x.req.method, x.req.upgrade = "GET", "websocket"
	x.req.header.Set("Sec-WebSocket-Key", w.key)
}

var errWebSocketAccept = errors.New("the backend's Sec-WebSocket-Accept does not answer the key that it was given")

// check looks at the head of the backend's 101 (Switching Protocols), and makes it
// one that answers a CONNECT.
func (w *websocketAsk) check(h *field.List) error {
	if !w.asked {
		return errors.New("nothing but an extended CONNECT can become a tunnel here")
	}
	sum := sha1.Sum([]byte(w.key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	if h.Get("Sec-WebSocket-Accept") != base64.StdEncoding.EncodeToString(sum[:]) {
		return errWebSocketAccept
	}
	h.Del("Sec-WebSocket-Accept")
	h.DelID(field.Connection)
	h.DelID(field.Upgrade)
	return nil
}

// refuse makes h that of an answer to a CONNECT whose backend did not change
// protocols but answered with a 2xx status, which would say that it had.
func (w *websocketAsk) refuse(x *exchange, h *field.List) (status int) {
	h.Reset()
	h.AddID(field.ContentLength, "0")
	x.out.status, x.out.end, x.out.err = 502, endProtocol, errNoWebSocket
	return 502
}

var errNoWebSocket = errors.New("the backend answered a request for a WebSocket as an ordinary one")
