package http

import (
	"encoding/json"
	"net/http"
	"strconv"
	"strings"

	"github.com/remotegpu/sluice/proxy/http/field"
	"github.com/remotegpu/sluice/router"
)

// errorPage returns the page that tells x's client of an error, or nil.
func (x *exchange) errorPage(status int) *router.ErrorPage {
	if r := x.hop.route; r != nil {
		if page := r.ErrorPages.For(status); page != nil {
			return page
		}
	}
	return x.conn.server.cfg.Policy.ErrorPages.For(status)
}

// dressed returns a, an answer of the node's own in few words, as the page that
// there is for it.
func (x *exchange) dressed(a *answer) *answer {
	page := x.errorPage(a.status)
	if page == nil {
		return a
	}
	content, mediaType, ok := x.renderPage(page, a.status, strings.TrimSuffix(a.body, "\n"))
	if !ok {
		return a
	}
	fields := append([]field.Line{{Name: "Content-Type", Value: mediaType, ID: field.ContentType}, {Name: "Vary", Value: "Accept"}}, a.fields...)
	return &answer{status: a.status, body: content, fields: fields}
}

// renderPage returns what page has to tell, in JSON to a client that asks for it
// and not for HTML. ok is false where the page is in a file that the node lacks.
func (x *exchange) renderPage(page *router.ErrorPage, status int, message string) (content, mediaType string, ok bool) {
	told := router.PageError{Status: status, Reason: http.StatusText(status), Message: message}
	if mediaType = page.MediaType(); !strings.Contains(mediaType, "json") && x.prefersJSON() {
		content, err := json.Marshal(struct {
			Status  int    `json:"status"`
			Error   string `json:"error"`
			Message string `json:"message,omitempty"`
		}{told.Status, told.Reason, told.Message})
		return string(content) + "\n", "application/json", err == nil
	}
	body := page.Body
	if page.File != "" {
		if body, ok = x.conn.server.cfg.Pages[page.File]; !ok {
			x.conn.server.cfg.Logger.Debug("the node has no such error page", "file", page.File, "status", status)
			return "", "", false
		}
	}
	vars := x.hop.vars
	if vars.Port == "" { // there is no route
		vars = x.vars(router.Captures{})
	}
	return body.Render(mediaType, told, &vars), mediaType, true
}

func (x *exchange) prefersJSON() bool {
	asks := false
	for _, l := range x.req.header.Lines() {
		if l.ID == field.Other && field.EqualFold(l.Name, "Accept") {
			if field.ListHas(l.Value, "text/html") {
				return false
			}
			asks = asks || field.ListHas(l.Value, "application/json")
		}
	}
	return asks
}

// replaced returns the page that takes the place of a backend's content, whose
// head is about to be sent, and makes the head that of the page; "" where the
// content stays.
func (x *exchange) replaced(status int, h *field.List) (content string) {
	page := x.errorPage(status)
	if page == nil || !page.Upstream {
		return ""
	}
	content, mediaType, ok := x.renderPage(page, status, "")
	if !ok || content == "" {
		return ""
	}
	for _, name := range ofReplacedContent {
		h.Del(name)
	}
	h.SetID(field.ContentType, mediaType)
	h.SetID(field.ContentLength, strconv.Itoa(len(content)))
	varyBy(h, "Accept")
	return content
}

// ofReplacedContent are fields that speak of content that is not sent.
var ofReplacedContent = append([]string{"Content-Encoding", "Content-Range", "Content-Language", "Content-Disposition", "Content-Location",
	"ETag", "Last-Modified", "Trailer"}, ofPlainContent...)

// replacedDown drops what a backend sends behind a page that took its place.
type replacedDown struct{ downstream }

func (d replacedDown) write([]byte) (int, error) { return 0, nil }
func (d replacedDown) trailer(string, string)    {}
func (d replacedDown) abort()                    {} // the page is whole, whatever becomes of the backend

// replace sends a page, and has the backend's content dropped.
func (x *exchange) replace(content string) {
	if x.req.method != "HEAD" {
		if err := x.write([]byte(content)); err != nil && x.out.end == "" {
			x.lostClient(err)
		}
	}
	x.down = replacedDown{x.down}
}
