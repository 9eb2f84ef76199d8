package router

import (
	"path"
	"strings"
)

// cleanPath resolves . and .. segments and doubled slashes of a decoded path,
// keeping a final slash. It returns p itself where there is nothing to resolve.
func cleanPath(p string) string {
	if p == "" || p[0] != '/' {
		return path.Clean("/" + p)
	}
	if !strings.Contains(p, "//") && !strings.Contains(p, "/.") {
		return p
	}
	c := path.Clean(p)
	if c != "/" && (strings.HasSuffix(p, "/") || strings.HasSuffix(p, "/.") || strings.HasSuffix(p, "/..")) {
		if p == c+"/" { // compared without a copy
			return p
		}
		c += "/"
	}
	return c
}

// hasPathPrefix reports whether p lies at or below prefix, at a segment's end.
func hasPathPrefix(p, prefix string) bool {
	switch {
	case prefix == "" || prefix == "/":
		return true
	case !strings.HasPrefix(p, prefix):
		return false
	case strings.HasSuffix(prefix, "/"):
		return true
	}
	return len(p) == len(prefix) || p[len(prefix)] == '/'
}
