"""Common words of four letters, each one token of SmolLM2 with and without a space before it."""

_TEXT = """
able acid area arms baby back band bank bars base bath beam bear beat beds bees bell belt best bird
blow blue boat body bold bolt bomb bond bone book boot born both bows boys bush call camp card care
cars case cash cats cell chat city clay club coal coat code coin cold come cook cool copy core corn
cost crop crow cube dark data days deal deep desc dish disk docs does dogs done door dose down draw
drew drop dual duct dust duty each ears east easy echo edge edit even exam exit face fact fair fall
farm fast feed feel feet felt file fill film find fine fire firm fish five flag flat flip flow foil
fold folk font food foot form fort four free from fuel full fund gain game gang gate gear gene give
goal gold good grab gray grid grow hair half hall hand hang hard harm have head heat help here hero
hide high hill hire hold hole home hood hook horn host hour idea inch iron item jobs join jump just
keep keys kick kids kind king know lake land lane last late lead leaf left lens less life lift like
lime line link lion list live loan lock long look loop lord loss love made mail main make male maps
mark mask mass math meal mean meat menu mesh milk mill mind mine mist mode moon more most move much
myth nail name near neck need nest news next nick nine node none norm nose note noun
"""

WORDS = tuple(_TEXT.split())
