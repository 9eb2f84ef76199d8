package keys

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// maxFile bounds a file of keys, in bytes.
const maxFile = 64 << 20

// ReadFiles reads the files of keys at paths: each a file, or a directory of
// which all files are read whose names end in .yaml, .yml or .json, but for
// hidden ones. No key may be in two of them, and there must be one at least: an
// input that is empty by mistake is not to be taken for the wish to have no
// keys. "-" is standard input.
func ReadFiles(paths []string, stdin io.Reader) ([]Wish, error) {
	r := fileReader{from: map[string]string{}}
	for _, path := range paths {
		before := len(r.all)
		if err := r.read(path, stdin); err != nil {
			return nil, err
		}
		if len(r.all) == before {
			return nil, fmt.Errorf("%s: no keys there; of a directory, files are read that end in .yaml, .yml or .json", nameOf(path))
		}
	}
	return r.all, nil
}

// fileReader gathers the keys of several files.
type fileReader struct {
	all  []Wish
	from map[string]string // by key, where it was first
}

func (r *fileReader) read(path string, stdin io.Reader) error {
	if path == "-" {
		wishes, err := readFile(nameOf(path), stdin)
		return r.add(nameOf(path), wishes, err)
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		wishes, err := openFile(path)
		return r.add(path, wishes, err)
	}
	if path, err = filepath.EvalSymlinks(path); err != nil {
		return err
	}
	return filepath.WalkDir(path, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		hidden := strings.HasPrefix(d.Name(), ".") && file != path
		if d.Type()&fs.ModeSymlink != 0 && !hidden {
			info, err := os.Stat(file)
			if err != nil {
				return err
			}
			if info.IsDir() {
				return fmt.Errorf("%s: a link to a folder, which is not followed; name that folder beside this one", file)
			}
			d = fs.FileInfoToDirEntry(info)
		}
		switch {
		case d.IsDir() && hidden:
			return fs.SkipDir
		case d.IsDir() || hidden || !slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(file)):
			return nil
		}
		if !d.Type().IsRegular() {
			return fmt.Errorf("%s: neither a file nor a folder", file)
		}
		wishes, err := openFile(file)
		return r.add(file, wishes, err)
	})
}

func (r *fileReader) add(file string, wishes []Wish, err error) error {
	for _, w := range wishes {
		if other, twice := r.from[w.Key]; twice {
			return fmt.Errorf("%s: the key %s is in %s too; leave it in one of them", file, w.Key, other)
		}
		r.from[w.Key] = file
	}
	r.all = append(r.all, wishes...)
	return err
}

func nameOf(path string) string {
	if path == "-" {
		return "standard input"
	}
	return path
}

func openFile(path string) ([]Wish, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readFile(path, f)
}

func readFile(name string, r io.Reader) ([]Wish, error) {
	text, err := io.ReadAll(io.LimitReader(r, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if len(text) > maxFile {
		return nil, fmt.Errorf("%s: more than %d MB; split it", name, maxFile>>20)
	}
	return ParseFile(name, text)
}

// ParseFile reads a file of keys: YAML or JSON, a mapping from keys below the
// prefix to values, or several such documents with --- between them. A value that
// is not a text becomes the JSON that it stands for. Errors begin with name and
// the line.
func ParseFile(name string, text []byte) ([]Wish, error) {
	var all []Wish
	lines := map[string]int{}
	for dec := yaml.NewDecoder(bytes.NewReader(text)); ; {
		var doc yaml.Node
		err := dec.Decode(&doc)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("%s: not valid YAML: %s", name, strings.TrimPrefix(err.Error(), "yaml: "))
		}
		if all, err = appendDocument(all, lines, name, &doc); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// appendDocument appends the keys of one document to all. lines has the lines of
// the keys so far.
func appendDocument(all []Wish, lines map[string]int, name string, doc *yaml.Node) ([]Wish, error) {
	if len(doc.Content) == 0 {
		return all, nil // comments alone
	}
	root := doc.Content[0]
	if root.Kind == yaml.ScalarNode && root.ShortTag() == "!!null" {
		return all, nil // nothing between two ---
	}
	if root.Kind != yaml.MappingNode {
		return nil, fmt.Errorf("%s:%d: write keys and their values, such as \"ports/tcp/20022: 127.0.0.1:22\"", name, root.Line)
	}
	for i := 0; i < len(root.Content); i += 2 {
		k, v := root.Content[i], root.Content[i+1]
		if first, twice := lines[k.Value]; twice {
			return nil, fmt.Errorf("%s:%d: the key %s is there already, in line %d", name, k.Line, k.Value, first)
		}
		lines[k.Value] = k.Line
		value, err := valueOf(v)
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %s: %w", name, v.Line, k.Value, err)
		}
		all = append(all, Wish{Key: k.Value, Value: value})
	}
	return all, nil
}

// valueOf writes a value as it stands in etcd.
func valueOf(n *yaml.Node) (string, error) {
	if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!str" {
		return n.Value, nil
	}
	var b bytes.Buffer
	if err := writeJSON(&b, n); err != nil {
		return "", err
	}
	return b.String(), nil
}

// writeJSON writes n as JSON, members in their order.
func writeJSON(b *bytes.Buffer, n *yaml.Node) error {
	switch n.Kind {
	case yaml.AliasNode:
		return fmt.Errorf("line %d: write the value itself rather than *%s", n.Line, n.Value)
	case yaml.MappingNode:
		b.WriteByte('{')
		for i := 0; i < len(n.Content); i += 2 {
			if i > 0 {
				b.WriteString(", ")
			}
			if n.Content[i].Kind != yaml.ScalarNode {
				return fmt.Errorf("line %d: a name is missing", n.Content[i].Line)
			}
			writeText(b, n.Content[i].Value)
			b.WriteString(": ")
			if err := writeJSON(b, n.Content[i+1]); err != nil {
				return err
			}
		}
		b.WriteByte('}')
		return nil
	case yaml.SequenceNode:
		b.WriteByte('[')
		for i, item := range n.Content {
			if i > 0 {
				b.WriteString(", ")
			}
			if err := writeJSON(b, item); err != nil {
				return err
			}
		}
		b.WriteByte(']')
		return nil
	}
	switch n.ShortTag() {
	case "!!int", "!!float", "!!bool", "!!null":
		var v any
		if err := n.Decode(&v); err != nil {
			return fmt.Errorf("line %d: %w", n.Line, err)
		}
		text, err := json.Marshal(v)
		if err != nil {
			return fmt.Errorf("line %d: %q is no number that JSON has", n.Line, n.Value)
		}
		b.Write(text)
	default: // texts, and dates, which are texts here
		writeText(b, n.Value)
	}
	return nil
}

func writeText(b *bytes.Buffer, s string) {
	enc := json.NewEncoder(b)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(s)       // of a string it cannot fail
	b.Truncate(b.Len() - 1) // the line feed
}
