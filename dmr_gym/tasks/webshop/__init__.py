"""WebShop's text environment without Java or Flask, at any catalogue size, on official or generated data.

The modules, in reading order.

Data, from files to products and goals:

- `data_files` finds the official files and streams their products; `json_stream` reads big JSON files value by value
- `rows` reads rows into products; `catalogue` has products by number, `columns` what is known of all of them at once
- `goal_table` is the part of goals that no seed changes; `goals` are the goals under a seed; `draws` the random draws
- `nouns` of titles, by which the reward tells kinds of things; `noun_table` keeps them on disk
- `shop` puts products, search and nouns together

Search:

- `analyzer` turns text into words, with `character_classes` and `porter`; `bm25` is the arithmetic of scores
- `index` finds products; `index_search` ranks them, `index_arrays` has what it reads
- `index_build` builds on disk from `index_runs`, which `index_merge` joins

On disk:

- `stored_shop` opens or builds an index directory, `store` has its catalogue, `index_folder` makes it appear whole

Play:

- `engine` is the environment; `play` the state of a shopping trip, `rules` what actions do to it
- `pages` are what is shown, `display` shows them in the observation modes, `storefront` has what engines share
- `reward` scores a purchase, comparing phrases as `fuzzy` does; `fixes` lists the quirks that can be mended

The task:

- `task` makes prompts and reads answers, with `views` of pages and goals from `panels`
- `generate` makes up a shop, with `shop_style`, `shop_text`, `shop_words` and `chance`
- `expert` plays it well, `demonstrations` are its episodes, `drills` exercises in copying
"""
