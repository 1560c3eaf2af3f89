package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"go.yaml.in/yaml/v3"
)

// fromYAML returns what the file says, by name of setting. Every key must be known
// and appear once.
func fromYAML(file string, data []byte, settings []setting) (map[string]given, error) {
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc yaml.Node
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF): // empty
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("%s: %w", file, oneLine(err))
	}
	var more yaml.Node
	if err := dec.Decode(&more); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s: want one YAML document, found a second one", file)
	}
	r := yamlReader{file: file, byName: make(map[string]*setting, len(settings)), found: map[string]given{}}
	for i := range settings {
		r.byName[settings[i].name] = &settings[i]
		r.names = append(r.names, settings[i].name)
	}
	return r.found, r.mapping(doc.Content[0], "")
}

func oneLine(err error) error {
	return errors.New(strings.Join(strings.Fields(err.Error()), " "))
}

type yamlReader struct {
	file   string
	byName map[string]*setting
	names  []string
	found  map[string]given
}

func (r *yamlReader) errorf(n *yaml.Node, format string, args ...any) error {
	return fmt.Errorf("%s:%d: %s", r.file, n.Line, fmt.Sprintf(format, args...))
}

// mapping reads keys and values of n; prefix is the nesting so far ("badger.").
func (r *yamlReader) mapping(n *yaml.Node, prefix string) error {
	if isNull(n) {
		return nil
	}
	if n.Kind != yaml.MappingNode {
		return r.errorf(n, "want a mapping of settings, such as \"raft-addr: 10.0.0.1:7000\"")
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], resolve(n.Content[i+1])
		if prefix == "" && key.Value+"." == badgerPrefix {
			if err := r.mapping(value, badgerPrefix); err != nil {
				return err
			}
			continue
		}
		name := prefix + key.Value
		s, ok := r.byName[name]
		if !ok || prefix == "" && strings.HasPrefix(name, badgerPrefix) {
			return r.unknown(key, prefix)
		}
		if _, ok := r.found[name]; ok {
			return r.errorf(key, "setting %q is there twice", name)
		}
		texts, err := r.texts(value, s)
		if err != nil {
			return err
		}
		r.found[name] = given{texts: texts, source: fmt.Sprintf("yaml %s:%d", r.file, key.Line)}
	}
	return nil
}

func (r *yamlReader) unknown(key *yaml.Node, prefix string) error {
	for name, s := range r.byName {
		if name != key.Value && (s.flag() == key.Value || s.env() == key.Value || name == strings.ReplaceAll(key.Value, "_", "-")) {
			if rest, ok := strings.CutPrefix(name, badgerPrefix); ok {
				return r.errorf(key, "unknown setting %q: write it as \"badger: {%s: …}\"", prefix+key.Value, rest)
			}
			return r.errorf(key, "unknown setting %q: write it as %q", prefix+key.Value, name)
		}
	}
	return r.errorf(key, "unknown setting %q%s", prefix+key.Value, suggestion(prefix+key.Value, r.names))
}

// texts returns the texts of a scalar, or of a sequence of scalars.
func (r *yamlReader) texts(n *yaml.Node, s *setting) ([]string, error) {
	switch {
	case isNull(n):
		if s.binding.list {
			return nil, nil
		}
		return nil, r.errorf(n, "setting %q has no value", s.name)
	case n.Kind == yaml.ScalarNode:
		return []string{n.Value}, nil
	case n.Kind == yaml.SequenceNode && s.binding.list:
		texts := make([]string, 0, len(n.Content))
		for _, item := range n.Content {
			if item = resolve(item); item.Kind != yaml.ScalarNode || isNull(item) {
				return nil, r.errorf(item, "setting %q wants a list of plain values", s.name)
			}
			texts = append(texts, item.Value)
		}
		return texts, nil
	}
	return nil, r.errorf(n, "setting %q wants %s", s.name, s.binding.kind)
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.Tag == "!!null" }

// resolve follows an alias; the YAML library has refused cycles.
func resolve(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}
