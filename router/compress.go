package router

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// Compress has responses compressed on their way to clients that take it. The
// zero value stands for the defaults, which the methods fill in. Event streams,
// gRPC and what is encoded already are never compressed, whatever it says.
type Compress struct {
	// Types are the media types to compress: "application/json", "text/*",
	// "*+json". nil: DefaultCompressTypes; empty: none, which is how a route
	// turns off what the node has on.
	Types []string `json:"types"`
	// MinSize is the least size to compress, in bytes; 0 means 1024.
	MinSize Bytes `json:"min_size"`
	// Codings are the content codings to offer, the preferred one first; empty:
	// zstd, then gzip.
	Codings []string `json:"codings"`
}

const (
	defaultMinCompressed = 1 << 10
	// maxMinCompressed bounds what of a response of unknown length is held back
	// until it is known to be worth compressing.
	maxMinCompressed = 64 << 10
)

// DefaultCompressTypes are the media types that are compressed where a value
// names none.
var DefaultCompressTypes = []string{
	"text/*", "application/json", "application/javascript", "application/xml", "application/x-ndjson", "application/wasm",
	"*+json", "*+xml", "font/ttf", "font/otf", "application/vnd.ms-fontobject", "image/x-icon", "image/bmp",
}

var defaultCodings = []string{"zstd", "gzip"}

// Longhand lets true stand for {} and false for {"types": []}.
func (c *Compress) Longhand(raw json.RawMessage) (json.RawMessage, error) {
	switch {
	case string(raw) == "true":
		return json.RawMessage("{}"), nil
	case string(raw) == "false":
		return json.RawMessage(`{"types":[]}`), nil
	case raw[0] != '{':
		return nil, fieldErrorf("", "must be true, false or an object in { }, not %s", describe(raw))
	}
	return raw, nil
}

// On reports whether anything is compressed; c may be nil.
func (c *Compress) On() bool { return c != nil && (c.Types == nil || len(c.Types) > 0) }

// Least returns the size in bytes from which on responses are compressed.
func (c *Compress) Least() int64 {
	if c.MinSize == 0 {
		return defaultMinCompressed
	}
	return int64(c.MinSize)
}

// Offered returns the content codings to offer, the preferred one first.
func (c *Compress) Offered() []string {
	if len(c.Codings) == 0 {
		return defaultCodings
	}
	return c.Codings
}

// Wants reports whether content of a type, as in Content-Type, is to be
// compressed.
func (c *Compress) Wants(contentType string) bool {
	media, _, _ := strings.Cut(contentType, ";")
	media = strings.Trim(media, " \t")
	if neverCompressed(media) {
		return false
	}
	types := c.Types
	if len(types) == 0 {
		types = DefaultCompressTypes
	}
	for _, t := range types {
		if mediaMatches(t, media) {
			return true
		}
	}
	return false
}

// neverCompressed reports whether a media type is of streams whose every part is
// for reading at once, or that frame and compress their messages themselves.
func neverCompressed(media string) bool {
	const grpc = "application/grpc" // and application/grpc-web, application/grpc+proto, ...
	return strings.EqualFold(media, "text/event-stream") || len(media) >= len(grpc) && strings.EqualFold(media[:len(grpc)], grpc)
}

func mediaMatches(pattern, media string) bool {
	n := len(pattern) - 1
	switch {
	case pattern[n] == '*':
		return len(media) > n && strings.EqualFold(media[:n], pattern[:n])
	case pattern[0] == '*':
		return len(media) > n && strings.EqualFold(media[len(media)-n:], pattern[1:])
	}
	return strings.EqualFold(media, pattern)
}

// compressedAlready are media types whose content does not get smaller.
var compressedAlready = []string{
	"image/png", "image/jpeg", "image/gif", "image/webp", "image/avif", "font/woff", "font/woff2", "application/zip",
	"application/gzip", "application/zstd", "application/x-7z-compressed", "application/pdf",
}

// Check refuses what makes no sense; c may be nil. path is where c stands in
// its value.
func (c *Compress) Check(path string) error {
	if c == nil {
		return nil
	}
	for i, t := range c.Types {
		if err := checkCompressType(fmt.Sprintf("%s[%d]", join(path, "types"), i), t); err != nil {
			return err
		}
	}
	if c.MinSize > maxMinCompressed {
		return fieldErrorf(join(path, "min_size"), "must be at most 64KiB, not %d bytes: so much of a response of unknown length is held back", int64(c.MinSize))
	}
	for i, coding := range c.Codings {
		at := fmt.Sprintf("%s[%d]", join(path, "codings"), i)
		if !contains(defaultCodings, coding) {
			return fieldErrorf(at, "%q is not known; write \"zstd\" or \"gzip\"", coding)
		}
		if contains(c.Codings[:i], coding) {
			return fieldErrorf(at, "%q occurs twice; keep one", coding)
		}
	}
	return nil
}

func checkCompressType(path, t string) error {
	major, minor, slash := strings.Cut(t, "/")
	suffix, isSuffix := strings.CutPrefix(t, "*+")
	switch {
	case isSuffix && isToken(suffix) && !strings.Contains(suffix, "*"):
		return nil
	case !slash || !isToken(major) || !isToken(minor) || strings.Contains(major, "*") || minor != "*" && strings.Contains(minor, "*"):
		return fieldErrorf(path, "%q is not a media type; write one such as \"application/json\", \"text/*\" or \"*+json\"", t)
	case neverCompressed(t):
		return fieldErrorf(path, "%q is never compressed: each of its parts is to be read as soon as it comes", t)
	case major == "video" || major == "audio" || slices.Contains(compressedAlready, strings.ToLower(t)):
		return fieldErrorf(path, "%q is compressed already; leave it out", t)
	}
	return nil
}
