package http_test

import (
	"bytes"
	"testing"

	"github.com/quic-go/qpack"
)

// sendH3 is a sender of HTTP/3 that checks nothing.
func (r *rig) sendH3(t *testing.T, q rawRequest) string {
	t.Helper()
	block := func(fields [][2]string) []byte {
		var b bytes.Buffer
		enc := qpack.NewEncoder(&b)
		for _, f := range fields {
			enc.WriteField(qpack.HeaderField{Name: f[0], Value: f[1]})
		}
		return h3Frame(0x1, b.Bytes())
	}
	parts := [][]byte{block(q.head())}
	for _, content := range q.body {
		parts = append(parts, h3Data(content))
	}
	if q.trailer != nil {
		parts = append(parts, block(q.trailer))
	}
	c := r.rawH3(t).settled()
	defer c.conn.CloseWithError(0x100, "")
	answer, err := c.answer(c.request(parts...))
	if status := answer.status(); status != "" {
		return status
	}
	return "end: " + err.Error()
}
