package h1

import (
	"strconv"

	"github.com/remotegpu/sluice/proxy/http/field"
)

// AppendRequestLine appends the first line of a request. method and target are
// those of a parsed request, or as strict.
func AppendRequestLine(b []byte, method, target string) []byte {
	b = append(b, method...)
	b = append(b, ' ')
	b = append(b, target...)
	return append(b, " HTTP/1.1\r\n"...)
}

// AppendStatusLine appends the first line of a response with the reason that
// goes with the status.
func AppendStatusLine(b []byte, status int, reason string) []byte {
	b = append(b, "HTTP/1.1 "...)
	if status >= 100 && status <= 999 {
		b = append(b, byte('0'+status/100), byte('0'+status/10%10), byte('0'+status%10))
	} else {
		b = strconv.AppendInt(b, int64(status), 10)
	}
	b = append(b, ' ')
	b = append(b, reason...)
	return append(b, '\r', '\n')
}

// AppendField appends a field line.
func AppendField(b []byte, name, value string) []byte {
	b = append(b, name...)
	b = append(b, ':', ' ')
	b = append(b, value...)
	return append(b, '\r', '\n')
}

// AppendFields appends every line of l. Names must be tokens and values free of
// control characters, as they are in what Parse has read.
func AppendFields(b []byte, l *field.List) []byte {
	lines := l.Lines()
	for i := range lines {
		b = AppendField(b, lines[i].Name, lines[i].Value)
	}
	return b
}

// AppendLength appends a Content-Length line.
func AppendLength(b []byte, n int64) []byte {
	b = append(b, "Content-Length: "...)
	b = strconv.AppendInt(b, n, 10)
	return append(b, '\r', '\n')
}

// AppendChunk appends content as one chunk; none as nothing at all.
func AppendChunk(b, content []byte) []byte {
	if len(content) == 0 {
		return b
	}
	b = AppendChunkSize(b, len(content))
	b = append(b, content...)
	return append(b, '\r', '\n')
}

// AppendChunkSize appends the line that begins a chunk of n bytes.
func AppendChunkSize(b []byte, n int) []byte {
	b = strconv.AppendUint(b, uint64(n), 16)
	return append(b, '\r', '\n')
}

// AppendLastChunk appends the end of a chunked body, with its trailer section.
func AppendLastChunk(b []byte, trailer *field.List) []byte {
	b = append(b, "0\r\n"...)
	if trailer != nil {
		b = AppendFields(b, trailer)
	}
	return append(b, '\r', '\n')
}
