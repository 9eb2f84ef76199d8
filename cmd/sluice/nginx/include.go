package nginx

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Load reads path: a file of nginx, or a directory that holds nginx.conf or, if
// not, files ending in .conf, each of which may be a part of one. What they
// include is read in its place. Paths below root, where nginx has its files
// (usually /etc/nginx), are looked for beside path where path is a copy that lies
// elsewhere.
func Load(path, root string) ([]*Directive, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	l := &loader{root: filepath.Clean(root), base: filepath.Dir(path)}
	if !info.IsDir() {
		return l.file(path, nil, 0)
	}
	l.base = path
	if main := filepath.Join(path, "nginx.conf"); exists(main) {
		return l.file(main, nil, 0)
	}
	files, err := filepath.Glob(filepath.Join(path, "*.conf"))
	if err != nil || len(files) == 0 {
		return nil, fmt.Errorf("%s: neither nginx.conf nor another file ending in .conf is there", path)
	}
	slices.Sort(files)
	var all []*Directive
	for _, f := range files {
		some, err := l.file(f, nil, 0)
		if err != nil {
			return nil, err
		}
		all = append(all, some...)
	}
	return all, nil
}

type loader struct {
	root, base string
	files      int
	directives int
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// file reads one, as a part of the block of parent.
func (l *loader) file(path string, parent *Directive, depth int) ([]*Directive, error) {
	if l.files++; l.files > maxFiles {
		return nil, fmt.Errorf("%s: more than %d files", path, maxFiles)
	}
	if info, err := os.Stat(path); err != nil {
		return nil, err
	} else if !info.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "read", Path: path, Err: fmt.Errorf("is not a file")}
	} else if info.Size() > maxFile {
		return nil, &ParseError{path, 1, fmt.Sprintf("the file is larger than %d MB", maxFile>>20)}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	all, err := Parse(path, text)
	if err != nil {
		return nil, err
	}
	return l.included(all, parent, depth)
}

// included returns directives with what they include in the place of each
// include.
func (l *loader) included(from []*Directive, parent *Directive, depth int) (to []*Directive, err error) {
	for _, d := range from {
		if l.directives++; l.directives > maxDirectives {
			return nil, &ParseError{d.File, d.Line, fmt.Sprintf("more than %d directives in all", maxDirectives)}
		}
		d.parent = parent
		if d.Name != "include" {
			if d.Block, err = l.included(d.Block, d, depth); err != nil {
				return nil, err
			}
			to = append(to, d)
			continue
		}
		some, err := l.include(d, parent, depth)
		if err != nil {
			return nil, err
		}
		to = append(to, some...)
	}
	return to, nil
}

func (l *loader) include(d, parent *Directive, depth int) (all []*Directive, err error) {
	fail := func(format string, args ...any) ([]*Directive, error) {
		return nil, &ParseError{d.File, d.Line, fmt.Sprintf(format, args...)}
	}
	if len(d.Args) != 1 || d.IsBlock {
		return fail("include takes one file or pattern")
	}
	if depth >= maxDepth {
		return fail("files include each other more than %d deep; one includes itself", maxDepth)
	}
	pattern := l.place(d.Args[0])
	files := []string{pattern}
	if strings.ContainsAny(pattern, "*?[") {
		if files, err = filepath.Glob(pattern); err != nil {
			return fail("include %q: %v", d.Args[0], err)
		}
		slices.Sort(files)
	} else if !exists(pattern) {
		// What nginx ships itself may not have come along.
		if name := filepath.Base(pattern); name == "mime.types" || strings.HasSuffix(name, "_params") {
			return nil, nil
		}
		return fail("include %q: there is no %s; copy it too, or say with --root where nginx has its files", d.Args[0], pattern)
	}
	for _, f := range files {
		some, err := l.file(f, parent, depth+1)
		if err != nil {
			return nil, err
		}
		all = append(all, some...)
	}
	return all, nil
}

// place returns where a file that nginx knows as path is here.
func (l *loader) place(path string) string {
	if !filepath.IsAbs(path) {
		return filepath.Join(l.base, path)
	}
	if rest, below := strings.CutPrefix(filepath.Clean(path), l.root+"/"); below {
		return filepath.Join(l.base, rest)
	}
	return path
}
