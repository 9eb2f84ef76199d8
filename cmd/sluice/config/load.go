package config

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/remotegpu/sluice/router"
)

// Env gives the value of an environment variable, as os.LookupEnv does.
type Env func(name string) (value string, ok bool)

// Load reads the file at path. ${NAME} in a value stands for the environment
// variable NAME or, where NAME_FILE is set instead, for the content of the file
// that it names (without its final line break), so that secrets can be mounted.
func Load(path string, env Env) (*Config, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the node's file: %w (give its path with --config)", err)
	}
	return Parse(path, text, env)
}

// Parse is Load for a text already read; path is for messages only.
func Parse(path string, text []byte, env Env) (*Config, error) {
	doc := document{path: path, env: env, lines: map[string]int{}}
	long, err := doc.toJSON(text)
	if err != nil {
		return nil, err
	}
	var c Config
	if err := router.Decode(long, &c); err != nil {
		return nil, doc.locate(err)
	}
	hostname, err := os.Hostname()
	if err != nil && c.Node == "" {
		return nil, fmt.Errorf("%s: node: is missing, and the host has no name: %w", path, err)
	}
	if err := doc.noZeros(&c); err != nil {
		return nil, doc.locate(err)
	}
	c = c.withDefaults(hostname)
	if err := c.validate(); err != nil {
		return nil, doc.locate(err)
	}
	return &c, nil
}

// DataOf returns the data directory that the file at path names, whatever else is
// wrong with it: for who looks for a node that runs by it.
func DataOf(path string) (string, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("read the node's file: %w (give its path with --config)", err)
	}
	var c struct {
		Data string `yaml:"data"`
	}
	if err := yaml.Unmarshal(text, &c); err != nil {
		return "", fmt.Errorf("%s: not valid YAML: %s", path, strings.TrimPrefix(err.Error(), "yaml: "))
	}
	return cmp.Or(c.Data, defaultData), nil
}

// noZeros refuses fields that are 0 because the file says so: whoever writes that
// means nothing at all or everything, and would get the default.
func (d *document) noZeros(c *Config) error {
	for _, f := range []struct {
		path string
		zero bool
		want string
	}{
		{"shrink_guard.percent", c.ShrinkGuard.Percent == 0, "must be from 1 to 100, which turns it off"},
		{"shrink_guard.least", c.ShrinkGuard.Least == 0, "must be 1 or more"},
		{"shrink_guard.window", c.ShrinkGuard.Window == 0, "must be more than 0; percent: 100 turns the guard off"},
		{"history.keep", c.History.Keep == 0, "must be a minute or more"},
		{"history.size", c.History.Size == 0, "must be from 1MB to 1GB"},
	} {
		if _, given := d.lines[f.path]; given && f.zero {
			return wrong(f.path, "%s", f.want)
		}
	}
	return nil
}

// document turns YAML into JSON for the one strict decoder, and remembers on
// which line each field stood.
type document struct {
	path  string
	env   Env
	lines map[string]int // by field path
}

func (d *document) toJSON(text []byte) ([]byte, error) {
	dec := yaml.NewDecoder(bytes.NewReader(text))
	var root yaml.Node
	switch err := dec.Decode(&root); {
	case errors.Is(err, io.EOF):
		return []byte("{}"), nil // an empty file is a node with every default
	case err != nil:
		return nil, fmt.Errorf("%s: not valid YAML: %s", d.path, strings.TrimPrefix(err.Error(), "yaml: "))
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s: holds more than one YAML document; keep one", d.path)
	}
	var out bytes.Buffer
	err := d.write(&out, "", root.Content[0])
	return out.Bytes(), err
}

func (d *document) write(out *bytes.Buffer, path string, n *yaml.Node) error {
	d.lines[path] = n.Line
	switch n.Kind {
	case yaml.MappingNode:
		return d.writeMapping(out, path, n)
	case yaml.SequenceNode:
		out.WriteByte('[')
		for i, item := range n.Content {
			if i > 0 {
				out.WriteByte(',')
			}
			if err := d.write(out, fmt.Sprintf("%s[%d]", path, i), item); err != nil {
				return err
			}
		}
		out.WriteByte(']')
		return nil
	case yaml.ScalarNode:
		return d.writeScalar(out, path, n)
	}
	return d.errorAt(n.Line, path, "YAML aliases are not supported; write the value out")
}

func (d *document) writeMapping(out *bytes.Buffer, path string, n *yaml.Node) error {
	out.WriteByte('{')
	for i := 0; i < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if i > 0 {
			out.WriteByte(',')
		}
		at := key.Value
		if path != "" {
			at = path + "." + key.Value
		}
		if d.lines[at] != 0 {
			return d.errorAt(key.Line, at, fmt.Sprintf("occurs twice, first on line %d; keep one", d.lines[at]))
		}
		writeString(out, key.Value)
		out.WriteByte(':')
		if err := d.write(out, at, value); err != nil {
			return err
		}
		d.lines[at] = key.Line
	}
	out.WriteByte('}')
	return nil
}

func (d *document) writeScalar(out *bytes.Buffer, path string, n *yaml.Node) error {
	switch n.ShortTag() {
	case "!!null":
		out.WriteString("null")
		return nil
	case "!!bool":
		var b bool
		if n.Decode(&b) == nil {
			fmt.Fprint(out, b)
			return nil
		}
	case "!!int":
		var i int64
		if n.Decode(&i) == nil {
			fmt.Fprint(out, i)
			return nil
		}
	}
	s, err := d.expand(n.Value)
	if err != nil {
		return d.errorAt(n.Line, path, err.Error())
	}
	writeString(out, s)
	return nil
}

func writeString(out *bytes.Buffer, s string) {
	quoted, err := json.Marshal(s)
	if err != nil {
		panic(err) // a string always encodes
	}
	out.Write(quoted)
}

var variable = regexp.MustCompile(`\$\{([A-Za-z_][A-Za-z0-9_]*)\}`)

func (d *document) expand(s string) (string, error) {
	var failed error
	expanded := variable.ReplaceAllStringFunc(s, func(ref string) string {
		name := ref[2 : len(ref)-1]
		if value, ok := d.env(name); ok {
			return value
		}
		file, ok := d.env(name + "_FILE")
		if !ok {
			failed = fmt.Errorf("the environment variable %s is not set (nor is %s_FILE)", name, name)
			return ""
		}
		content, err := os.ReadFile(file)
		if err != nil {
			failed = fmt.Errorf("read the file named in %s_FILE: %w", name, err)
		}
		return strings.TrimRight(string(content), "\r\n")
	})
	return expanded, failed
}

func (d *document) errorAt(line int, path, msg string) error {
	if path == "" {
		return fmt.Errorf("%s:%d: %s", d.path, line, msg)
	}
	return fmt.Errorf("%s:%d: %s: %s", d.path, line, path, msg)
}

// locate adds file and line to an error about a field. A field that is absent
// is reported where its nearest present parent stands.
func (d *document) locate(err error) error {
	var fe *router.FieldError
	if !errors.As(err, &fe) {
		return fmt.Errorf("%s: %w", d.path, err)
	}
	for at := fe.Path; at != ""; at = at[:max(0, strings.LastIndexAny(at, ".["))] {
		if line, ok := d.lines[at]; ok {
			return d.errorAt(line, fe.Path, fe.Msg)
		}
	}
	if fe.Path == "" {
		return fmt.Errorf("%s: %s", d.path, fe.Msg)
	}
	return fmt.Errorf("%s: %s: %s", d.path, fe.Path, fe.Msg)
}

// defaultData is the data directory of a node whose file names none.
const defaultData = "/var/lib/sluice"
