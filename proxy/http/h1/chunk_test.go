package h1_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/remotegpu/sluice/proxy/http/h1"
)

// decode takes the chunks off text, of which step bytes come at a time. rest is
// what follows the body.
func decode(text string, step int) (content, rest string, done bool, c *h1.Chunks, err error) {
	c = new(h1.Chunks)
	var buf []byte
	for {
		for {
			part, used, err := c.Next(buf)
			content += string(part)
			buf = buf[used:]
			if err != nil {
				return content, "", false, c, err
			}
			if len(part) == 0 {
				break
			}
		}
		if c.Done() || text == "" {
			return content, string(buf) + text, c.Done(), c, nil
		}
		n := min(step, len(text))
		buf = append(buf, text[:n]...)
		text = text[n:]
	}
}

func TestChunks(t *testing.T) {
	for _, tc := range []struct{ text, want string }{
		{"5\r\nhello\r\n0\r\n\r\nnext", `"hello" then "next" []`},
		{"5;a=b\r\nhello\r\n6 ; c=\"d\"\r\n world\r\n0\r\n\r\n", `"hello world" then "" []`},
		{"00A\r\n0123456789\r\n000\r\n\r\n", `"0123456789" then "" []`},
		{"0\r\nX-Sum: 42\r\nY:\r\n\r\nz", `"" then "z" [{X-Sum 42 0} {Y  0}]`},
		{"5\r\nhello", `more`},
		{"5\r\nhello\r\n0\r\n", `more`},

		{"5\nhello\r\n0\r\n\r\n", "error"},
		{"5\r\nhello\n0\r\n\r\n", "error"},
		{"5\r\nhelloo\r\n0\r\n\r\n", "error"},
		{"5\r\nhell\r\n0\r\n\r\n", "error"},
		{"\r\nhello", "error"},
		{"x\r\n", "error"},
		{"-5\r\nhello\r\n", "error"},
		{"+5\r\nhello\r\n", "error"},
		{"0x5\r\nhello\r\n", "error"},
		{"5 \r\nhello\r\n", "error"},
		{" 5\r\nhello\r\n", "error"},
		{"5;a\x00\r\nhello\r\n", "error"},
		{"5;a\rb\r\nhello\r\n", "error"},
		{"fffffffffffffffff\r\n", "error"},
		{"8000000000000000\r\n", "error"},
		{"5;" + strings.Repeat("x", 300) + "\r\nhello\r\n", "error"},
		{"0\r\nX : y\r\n\r\n", "error"},
		{"0\r\n X: y\r\n\r\n", "error"},
		{"0\r\nX: y\n\r\n", "error"},
		{"0\r\n\n", "error"},
		{"0\r\n" + strings.Repeat("X: "+strings.Repeat("y", 1000)+"\r\n", 9) + "\r\n", "error"},
		{"0\r\nX: " + strings.Repeat("y", 9000), "error"},
		{"0\r\n" + strings.Repeat("X: y\r\n", 65) + "\r\n", "error"},
		{strings.Repeat("1;"+strings.Repeat("x", 200)+"\r\ny\r\n", 200), "error"},
	} {
		for _, step := range []int{1, 2, 3, 7, 1 << 20} {
			content, rest, done, c, err := decode(tc.text, step)
			got := "more"
			if err != nil {
				got = "error"
			} else if done {
				got = fmt.Sprintf("%q then %q %v", content, rest, c.Trailer.Lines())
			}
			if got != tc.want {
				t.Errorf("%.60q by %d: %s (%v), want %s", tc.text, step, got, err, tc.want)
			}
		}
	}
}

// TestManyChunks checks that small chunks alone are no offence.
func TestManyChunks(t *testing.T) {
	text := strings.Repeat("1\r\nx\r\n", 100_000) + "0\r\n\r\n"
	if content, _, done, _, err := decode(text, 1000); err != nil || !done || len(content) != 100_000 {
		t.Errorf("%d bytes, done %v, %v", len(content), done, err)
	}
}

func TestChunksAreWrittenAsTheyAreRead(t *testing.T) {
	b := h1.AppendChunk(nil, []byte("hello"))
	b = h1.AppendChunk(b, nil)
	b = h1.AppendChunk(b, []byte(strings.Repeat("x", 300)))
	b = h1.AppendLastChunk(b, nil)
	if content, rest, done, _, err := decode(string(b), 10); err != nil || !done || rest != "" || content != "hello"+strings.Repeat("x", 300) {
		t.Errorf("%q, %q, %v, %v", content, rest, done, err)
	}
}
