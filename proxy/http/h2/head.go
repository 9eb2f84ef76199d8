package h2

import (
	"bytes"
	"strconv"
	"unsafe"

	"github.com/remotegpu/sluice/proxy/http/field"
)

// Kind says what a field section is.
type Kind uint8

// The kinds of field sections.
const (
	KindRequest Kind = iota
	KindResponse
	KindTrailer
)

// Head is a decoded field section: the head of a request or a response, or a
// trailer section. The zero value needs Reset. Strings hold until the next.
type Head struct {
	// Of requests; "" where there is none. Authority is what Host said where
	// there is no :authority.
	Method, Scheme, Authority, Path, Protocol string
	// Status is a response's.
	Status int
	// Length is what Content-Length says; -1 where there is none.
	Length int64
	// Fields are the others in their order, cookies joined and Host left out.
	Fields field.List
	// TooLarge is whether the section is beyond the limit; it is incomplete then.
	TooLarge bool

	kind    Kind
	limit   int // of size
	size    int // as RFC 9113 section 6.5.2 counts
	seen    uint8
	cookies int
	host    string
	hasHost bool
	wrong   string // what makes it malformed, or ""
	arena   []byte
}

// The pseudo-header fields, as bits of Head.seen.
const (
	seenMethod uint8 = 1 << iota
	seenScheme
	seenAuthority
	seenPath
	seenProtocol
	seenStatus
)

// pseudo is what a name that begins with a colon stands for.
type pseudo uint8

const (
	notPseudo pseudo = iota
	pseudoMethod
	pseudoScheme
	pseudoAuthority
	pseudoPath
	pseudoProtocol
	pseudoStatus
	pseudoUnknown
)

// line is a field as the tables of HPACK keep it, judged once.
type line struct {
	field.Line
	pseudo pseudo
	cookie bool
	wrong  string // why no message may hold it; "": one may
}

// overhead is what a field counts beyond its octets (RFC 9113 section 6.5.2, RFC
// 7541 section 4.1).
const overhead = 32

func (l *line) size() int { return len(l.Name) + len(l.Value) + overhead }

// arenaRoom is kept of an arena from one head to the next.
const arenaRoom = 4 << 10

// Reset makes h ready for a field section of at most limit bytes, as RFC 9113
// section 6.5.2 counts them. What h holds is lost.
func (h *Head) Reset(kind Kind, limit int) {
	fields, arena := h.Fields, h.arena[:0]
	if cap(arena) > arenaRoom {
		arena = nil
	}
	fields.Reset()
	*h = Head{Fields: fields, arena: arena, kind: kind, limit: limit, Length: -1}
}

// Arena returns the buffer that strings lie in, for who wants to spoil it.
func (h *Head) Arena() []byte { return h.arena[:cap(h.arena)] }

// room returns n bytes of the arena. What was handed out stays where it is.
func (h *Head) room(n int) []byte {
	if cap(h.arena)-len(h.arena) < n {
		h.arena = make([]byte, 0, max(2*cap(h.arena), n, 512))
	}
	at := len(h.arena)
	h.arena = h.arena[:at+n]
	return h.arena[at : at : at+n]
}

// add takes a decoded field.
func (h *Head) add(l *line) {
	if h.size += l.size(); h.size > h.limit || h.Fields.Len() >= field.MaxLines {
		h.TooLarge = true
		return
	}
	switch {
	case h.wrong != "":
	case l.wrong != "":
		h.wrong = l.wrong
	case l.pseudo != notPseudo:
		h.addPseudo(l)
	case l.ID == field.Other:
		if l.cookie {
			h.cookies++
		}
		h.Fields.Append(l.Line)
	default:
		h.addKnown(l)
	}
}

func (h *Head) addPseudo(l *line) {
	if h.kind == KindTrailer {
		h.wrong = "a trailer section holds a pseudo-header field"
		return
	}
	if h.Fields.Len() > 0 || h.hasHost {
		h.wrong = "a pseudo-header field follows others"
		return
	}
	bit := uint8(1) << (l.pseudo - pseudoMethod)
	switch {
	case l.pseudo == pseudoUnknown, (l.pseudo == pseudoStatus) != (h.kind == KindResponse):
		h.wrong = "a pseudo-header field is not known here"
		return
	case h.seen&bit != 0:
		h.wrong = "a pseudo-header field is there twice"
		return
	}
	h.seen |= bit
	switch l.pseudo {
	case pseudoMethod:
		h.Method = l.Value
	case pseudoScheme:
		h.Scheme = l.Value
	case pseudoAuthority:
		h.Authority = l.Value
	case pseudoPath:
		h.Path = l.Value
	case pseudoProtocol:
		h.Protocol = l.Value
	case pseudoStatus:
		if h.Status = statusOf(l.Value); h.Status == 0 {
			h.wrong = "the status is not three digits"
		}
	}
}

func statusOf(s string) int {
	if len(s) != 3 || s[0] < '1' || s[0] > '9' {
		return 0
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		return 0
	}
	return n
}

// addKnown takes a field that has a say in what a message is.
func (h *Head) addKnown(l *line) {
	switch l.ID {
	case field.Connection, field.KeepAlive, field.ProxyConnection, field.TransferEncoding, field.Upgrade:
		h.wrong = "a field belongs to connections of HTTP/1.1: " + l.ID.Name()
		return
	case field.TE:
		if h.kind != KindRequest || !field.EqualFold(l.Value, "trailers") {
			h.wrong = "TE says something else than trailers"
			return
		}
	case field.Host:
		if h.kind == KindRequest {
			if h.hasHost {
				h.wrong = "Host is there twice"
			}
			h.host, h.hasHost = l.Value, true
			return
		}
	case field.ContentLength:
		if h.kind == KindTrailer {
			break // MayTrail has those who pass it on leave it out
		}
		n, err := strconv.ParseUint(l.Value, 10, 63)
		if err != nil || h.Length >= 0 || l.Value[0] == '+' {
			h.wrong = "Content-Length is not one number"
			return
		}
		h.Length = int64(n)
	}
	h.Fields.Append(l.Line)
}

// Check says why the section, which is complete, is malformed (RFC 9113 sections
// 8.1.1, 8.2 and 8.3), in words; "" where it is well formed. It joins cookies.
func (h *Head) Check() (wrong string) {
	if h.wrong == "" && !h.TooLarge {
		switch h.kind {
		case KindRequest:
			h.wrong = h.checkRequest()
		case KindResponse:
			if h.seen&seenStatus == 0 {
				h.wrong = "the response has no :status"
			}
		}
		if h.cookies > 1 {
			h.joinCookies()
		}
	}
	return h.wrong
}

func (h *Head) checkRequest() string {
	const plain = seenMethod | seenScheme | seenPath
	has := h.seen
	switch {
	case has&seenMethod == 0 || h.Method == "":
		return "the request has no :method"
	case h.Method == "CONNECT" && has&seenProtocol == 0:
		if has&(seenScheme|seenPath) != 0 || has&seenAuthority == 0 {
			return "CONNECT has :scheme or :path, or no :authority"
		}
		return h.checkAuthority()
	case has&plain != plain || h.Scheme == "" || h.Path == "":
		return "the request lacks :scheme or :path"
	case has&seenProtocol != 0 && (h.Method != "CONNECT" || has&seenAuthority == 0 || h.Protocol == ""):
		return ":protocol is for CONNECT with :authority"
	case h.Path[0] != '/' && (h.Path != "*" || h.Method != "OPTIONS"):
		return ":path does not begin with a slash"
	}
	return h.checkAuthority()
}

// checkAuthority compares :authority with Host, which must not differ (RFC 9113
// section 8.3.1).
func (h *Head) checkAuthority() string {
	if h.hasHost {
		if h.seen&seenAuthority == 0 {
			h.Authority = h.host
		} else if !field.EqualFold(h.host, h.Authority) {
			return "Host and :authority differ"
		}
	}
	for i := range len(h.Authority) {
		if c := h.Authority[i]; c == '@' || c <= ' ' || c == 0x7f {
			return ":authority holds what no authority may"
		}
	}
	return ""
}

// joinCookies puts the crumbs of cookies together, as HTTP/1.1 wants them (RFC
// 9113 section 8.2.3).
func (h *Head) joinCookies() {
	total := 0
	for _, l := range h.Fields.Lines() {
		if isCookie(l.Name) {
			total += len(l.Value) + 2
		}
	}
	b, first := h.room(total), true
	h.Fields.DelFunc(func(l *field.Line) bool {
		if !isCookie(l.Name) {
			return false
		}
		if len(b) > 0 {
			b = append(b, "; "...)
		}
		b = append(b, l.Value...)
		drop := !first
		first = false
		return drop
	})
	joined := str(b)
	for i := range h.Fields.Lines() {
		if l := &h.Fields.Lines()[i]; isCookie(l.Name) {
			l.Value = joined
		}
	}
}

func isCookie(name string) bool { return name == "cookie" }

// str returns b as a string that shares its bytes.
func str(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// judge says of a field that has been decoded what it is, and whether a message
// may hold it.
func judge(name, value string) line {
	l := line{Line: field.Line{Name: name, Value: value}}
	if name != "" && name[0] == ':' {
		l.pseudo = pseudoOf(name)
	} else {
		l.ID = field.Identify(name)
		l.cookie = isCookie(name)
		l.wrong = checkName(name)
	}
	if l.wrong == "" {
		l.wrong = checkValue(value)
	}
	return l
}

func pseudoOf(name string) pseudo {
	switch name {
	case ":method":
		return pseudoMethod
	case ":scheme":
		return pseudoScheme
	case ":authority":
		return pseudoAuthority
	case ":path":
		return pseudoPath
	case ":protocol":
		return pseudoProtocol
	case ":status":
		return pseudoStatus
	}
	return pseudoUnknown
}

// checkName wants a token in lower case (RFC 9113 section 8.2.1).
func checkName(name string) string {
	for i := range len(name) {
		if !isLowerToken[name[i]] {
			return "a field name is not a token in lower case"
		}
	}
	if name == "" {
		return "a field has no name"
	}
	return ""
}

// checkValue wants text without control characters but tab, and no white space
// around it (RFC 9113 section 8.2.1, RFC 9110 section 5.5).
func checkValue(value string) string {
	for i := range len(value) {
		if c := value[i]; c < ' ' && c != '\t' || c == 0x7f {
			return "a field value holds a control character"
		}
	}
	if n := len(value); n > 0 && (isSpace(value[0]) || isSpace(value[n-1])) {
		return "a field value begins or ends with white space"
	}
	return ""
}

func isSpace(c byte) bool { return c == ' ' || c == '\t' }

// isLowerToken has the characters of tokens (RFC 9110 section 5.6.2) but for
// capitals.
var isLowerToken = func() (is [256]bool) {
	for c := range 128 {
		letter := c >= 'a' && c <= 'z'
		is[c] = letter || c >= '0' && c <= '9' || bytes.IndexByte([]byte("!#$%&'*+-.^_`|~"), byte(c)) >= 0
	}
	return is
}()
