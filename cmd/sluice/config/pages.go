package config

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/remotegpu/sluice/router"
)

// ErrorPages reads the files in Pages that error pages may be taken from, by
// their names: all but hidden ones and directories. Every file that HTTP names is
// among them. Errors are *router.FieldError.
func (c *Config) ErrorPages() (map[string]router.Template, error) {
	pages := map[string]router.Template{}
	if c.Pages != "" {
		entries, err := os.ReadDir(c.Pages)
		if err != nil {
			return nil, wrong("pages", "%v", err)
		}
		for _, e := range entries {
			if e.IsDir() || strings.HasPrefix(e.Name(), ".") {
				continue
			}
			page, err := readPage(filepath.Join(c.Pages, e.Name()))
			if err != nil {
				return nil, wrong("pages", "%s: %v", e.Name(), err)
			}
			pages[e.Name()] = page
		}
	}
	for status, page := range c.HTTP.ErrorPages {
		if _, ok := pages[page.File]; page.File != "" && !ok {
			return nil, wrong("http.error_pages."+status+".file", "%q is not among the files in pages (%q)", page.File, c.Pages)
		}
	}
	return pages, nil
}

func readPage(path string) (page router.Template, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return page, err
	}
	if page, err = router.ParseTemplate(string(text)); err != nil {
		return page, err
	}
	return page, page.CheckPage("", nil)
}
